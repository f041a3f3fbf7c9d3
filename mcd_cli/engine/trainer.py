"""One stage of training: Algorithm 1, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcd_cli.data.loader import Batch, Loader
from mcd_cli.engine.checkpoint import State, optimizer_tensors, put, restore_optimizer
from mcd_cli.engine.cuda_graphs import GraphBackend, GraphCapture
from mcd_cli.engine.evaluation import each_logits, num_correct, predictions
from mcd_cli.engine.hardware import Hardware
from mcd_cli.engine.instance_weights import InstanceWeights
from mcd_cli.engine.meters import Meters
from mcd_cli.engine.non_finite import PATIENCE, NonFiniteGuard
from mcd_cli.engine.optimizers import coordinator_optimizer, students_optimizer
from mcd_cli.engine.results import Weights
from mcd_cli.engine.stages import StagePlan
from mcd_cli.engine.teacher_logits import TeacherLogits
from mcd_cli.ladder.metrics import EpochRecord
from mcd_cli.methods.base import TEACHER, BatchContext, PreparationData
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.models.students import Students, forward_in_chunks, promote_to_float32, seeded
from mcd_cli.ops import meta_gradient
from mcd_cli.ops.losses import cross_entropy, instance_losses
from mcd_cli.seeds import generator, seed_of

CoordinatorInputs = tuple[Tensor, ...]
"""What C-NET looks at: the images, [n, 3, H, W], and, where it sees losses, what they cost, [n, k·c + teachers]."""


class Trainer:
    """A stage's live state and its steps. Everything random is a function of seeds and `step_index`, the steps made."""

    def __init__(
        self,
        plan: StagePlan,
        students: Students,
        teachers: Mapping[str, nn.Module],
        loader: Loader,
        hardware: Hardware,
        teacher_logits: TeacherLogits | None = None,
        backend: GraphBackend | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        """teacher_logits: stored ones; None: the teacher runs in every step. backend: None for no CUDA graphs."""
        self.plan = plan
        self.loader = loader
        self.hardware = hardware
        self.processes = hardware.processes
        self.teacher_logits = teacher_logits
        self.view_logits: tuple[int, Tensor] | None = None  # of that epoch
        self.teachers = {name: teachers[name] for name in plan.stage.teachers}
        self.students = students.to(hardware.device).train()
        self.optimizer = students_optimizer(students.networks.values(), plan.sgd)
        # The host runs ahead of one GPU: what changes from step to step, or decides, stays there.
        ahead = hardware.runs_ahead or backend is not None
        self.lr = torch.zeros((), device=hardware.device) if ahead else None
        self.non_finite = NonFiniteGuard(students.names, plan.name, hardware.device, deferred=ahead)
        self.loss_names = plan.method.loss_names(plan.stage)
        self.coordinator: Coordinator | None = None
        self.instance_weights: InstanceWeights | None = None
        if plan.learned:
            self.coordinator = self._new_coordinator()
            self.coordinator_optimizer = coordinator_optimizer(self.coordinator, plan.coordinator, ahead)
            num_images = len(loader.dataset.labels)
            self.instance_weights = InstanceWeights(
                num_images, len(students.names), len(self.loss_names), hardware.device
            )
        self.meters = Meters(len(students.names), len(self.loss_names), hardware.device)
        if ahead:
            for optimizer in self._optimizers():
                optimizer.found_inf = self.non_finite.found_inf  # type: ignore[attr-defined]
        self.graphs = GraphCapture(backend, hardware.device, warn)
        self.ordinary_step = self.graphs.wrap("the training step", self._ordinary_step, self._written)
        self.meta_step = self.graphs.wrap("the meta step", self._meta_step, self._written)
        self.evaluated = self.graphs.wrap("evaluation", self.students, list)
        self.step_index = 0
        self.updates = 0
        self.epochs_done = 0
        self.best: dict[str, int] = {}  # right answers on V
        self.best_weights: dict[str, Weights] = {}
        self.tables: dict[str, Tensor] = {}

    @property
    def num_steps(self) -> int:
        return self.plan.epochs * self.loader.num_steps

    def prepare(self, subset: Tensor | None = None) -> None:
        """The method's pass before the first step; `subset`: over these images alone, to see what it costs."""
        train = self.loader.dataset.train if subset is None else subset
        data = PreparationData(
            ids=train,
            labels=self.loader.dataset.labels[train],
            num_images=len(self.loader.dataset.images),
            logits=lambda: each_logits(self.students, self.loader, train, lambda z: z),
        )
        self.tables = {name: table.to(self.hardware.device) for name, table in self.plan.method.prepare(data).items()}

    def epochs(self) -> Iterator[Iterator[None]]:
        """The epochs still to train, each as its remaining steps; evaluation follows when an epoch is exhausted."""
        while self.epochs_done < self.plan.epochs:
            yield self._steps()

    def _steps(self) -> Iterator[None]:
        start = self.step_index - self.epochs_done * self.loader.num_steps
        num_views = self.teacher_logits.num_views if self.teacher_logits else 0
        for batch in self.loader.epoch(self.epochs_done, start, num_views):
            self.step(batch)
            yield

    def step(self, batch: Batch) -> None:
        """θ^t → θ^{t+1} by Eq. 8; every L-th time φ follows through that very step (Eq. 9)."""
        self._set_learning_rate()
        self._seed_dropout()
        stored = self._stored(batch)
        if self._coordinator_learns():
            self.meta_step(batch, stored, self.loader.validation_batch(self.updates))
            self.updates += 1
        else:
            self.ordinary_step(batch, stored)
        self.step_index += 1
        if self.step_index % PATIENCE == 0:
            self.non_finite.refuse(self.step_index)

    def _ordinary_step(self, batch: Batch, stored: Tensor | None) -> None:
        self._descend(batch, stored, learns=False)

    def _meta_step(self, batch: Batch, stored: Tensor | None, validation: Batch) -> None:
        theta = {name: p.detach().clone() for name, p in self.students.named_parameters()}
        c = [meta_gradient.step_size(group, self._has_buffer(group)) for group in self.optimizer.param_groups]
        losses_of, inputs = self._descend(batch, stored, learns=True)
        assert inputs is not None
        self.optimizer.zero_grad()
        self._update_coordinator(batch, validation, inputs, theta, losses_of, c)

    def _descend(
        self, batch: Batch, stored: Tensor | None, learns: bool
    ) -> tuple[Callable[[Tensor], Tensor], CoordinatorInputs | None]:
        """The students' step by Eq. 8; returns their losses as a function of logits, and what C-NET looked at.

        stored: the teacher's logits of the batch; learns: φ will be differentiated through this step.
        """
        x, y = batch.images, batch.labels
        with torch.no_grad(), self.hardware.autocast():
            z_teachers = {name: promote_to_float32(self._seen_by(name, x, stored)) for name in self.teachers}
        with self.hardware.autocast(not learns):  # the step that φ differentiates runs in float32
            z = self.students(x)

        context = BatchContext(batch.ids, y, z.detach(), z_teachers, self.tables, self._current_step_index, self._draw)
        targets = self.plan.method.targets(context)

        def losses_of(logits: Tensor) -> Tensor:
            return instance_losses(logits, y, targets, self.plan.tau)

        losses = losses_of(z)  # [n, k, c]
        self.non_finite.check(self.step_index, logits=z, loss=losses)
        with torch.no_grad():
            p = inputs = None
            if self.coordinator is not None:
                inputs = (x, costs(losses, z_teachers, y)) if self.coordinator.sees_losses else (x,)
                p = self._coordinator_outputs(inputs, batch.size, not learns)
            w = self.plan.method.weights(context) if p is None else self._weigh(p)
            w = w.expand_as(losses)
        loss = (w * losses).sum() / batch.size  # Σ_j of Eq. 3, Eq. 5; its shard of the mean over images

        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.all_reduce_(_gradients(self.students), means=self._statistics())
        self.optimizer.step()  # Eq. 8
        right = (context.logits.argmax(dim=-1) == y[:, None]).to(self.meters.dtype)
        seen = [self.processes.gather(t, batch.size) for t in (right, losses.detach(), w)]
        self.meters.add(*seen, p=p)
        if self.instance_weights is not None:
            self.instance_weights.add(self.processes.gather(batch.ids, batch.size), seen[-1])
        return losses_of, inputs

    def _update_coordinator(
        self,
        batch: Batch,
        validation: Batch,
        inputs: CoordinatorInputs,
        theta: Weights,
        losses: Callable[[Tensor], Tensor],
        c: list[float | Tensor],
    ) -> None:
        """φ^{t+1} by Eq. 9: the gradient of L_val(θ^{t+1}) through the step just made."""
        assert self.coordinator is not None
        literal = self.plan.coordinator.optimizer == "adam"
        v = meta_gradient.validation_gradient(self.students, validation.images, validation.labels, validation.size)
        self.processes.all_reduce_(list(v.values()))
        self._seed_dropout()  # the same masks as in the real step
        directional = meta_gradient.directional_losses(self.students, theta, v, batch.images, losses)
        gradient = meta_gradient.weight_gradient(directional, c if literal else 1.0, batch.size)
        parameters = dict(self.coordinator.named_parameters())
        p = meta_gradient.without_side_effects(self.coordinator, parameters, *inputs)
        w = self._weigh(self.processes.gather(p, batch.size))
        self.coordinator_optimizer.zero_grad()
        (w * gradient).sum().backward()
        self.processes.all_reduce_(_gradients(self.coordinator))
        self.coordinator_optimizer.step()

    def end_epoch(self) -> EpochRecord:
        """Evaluate on V, keep each student's best; returns the epoch's line for metrics.jsonl."""
        self.non_finite.refuse(self.step_index)
        val = self.loader.dataset.val
        predicted = predictions(self.students, self.loader, val, self.evaluated)
        correct = num_correct(predicted, self.loader, val).tolist()
        val_accuracy = [right / len(val) for right in correct]
        summary = self.meters.summary(self.students.names, self.loss_names, self.coordinator is not None, val_accuracy)
        for name, right in zip(self.students.names, correct, strict=True):
            if right > self.best.get(name, -1) or self.plan.on_val:
                self.best[name] = right
                self.best_weights[name] = self.current(name)
        self.meters.reset()
        self.epochs_done += 1
        if self.instance_weights is not None and self.epochs_done == self.plan.epochs:
            images_of = self.instance_weights.summary(self.students.names, self.loss_names, self.loader.dataset)
            summary = {name: replace(student, images=images_of[name]) for name, student in summary.items()}
        return EpochRecord(
            stage=self.plan.name,
            epoch=self.epochs_done,
            step=self.step_index,
            lr=self._learning_rate(self.step_index - 1),
            coordinator_updates=self.updates,
            normalise=None if self.coordinator is None else self.plan.coordinator.normalise,
            students=summary,
            preparation=self.plan.method.summary(self.tables) if self.epochs_done == 1 else {},
        )

    def current(self, name: str) -> Weights:
        """That student's weights now, as copies on the CPU."""
        state = self.students.networks[name].state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def state_dict(self) -> State:
        """All that a checkpoint holds of this stage. Raises RunFailed where a student is not finite.

        Its names are stored in every checkpoint: they stay as they are, whatever the attributes are called.
        """
        self.non_finite.refuse(self.step_index)
        best = {f"best/{name}": weights for name, weights in self.best_weights.items()}
        parts = self._moving_parts() | {"memory": self.tables} | best
        tensors = {f"{part}:{key}": value for part, content in parts.items() for key, value in content.items()}
        position = {
            "number": self.step_index,
            "updates": self.updates,
            "epochs_done": self.epochs_done,
            "best": self.best,
        }
        return State(tensors, position)

    def _moving_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """What a step writes to, in place."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "students": self.students.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "meters": self.meters.state_dict(),
        }
        if self.coordinator is not None:
            parts["coordinator"] = self.coordinator.state_dict()
            parts["coordinator_optimizer"] = optimizer_tensors(self.coordinator_optimizer)
        if self.instance_weights is not None:
            parts["weighed"] = self.instance_weights.state_dict()
        return parts

    def _written(self) -> list[Tensor]:
        """All of them, and the device's own verdict."""
        return [t for part in self._moving_parts().values() for t in part.values()] + self.non_finite.tensors()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer] if self.coordinator is None else [self.optimizer, self.coordinator_optimizer]

    def load_state_dict(self, state: State) -> None:
        """Become the trainer that was saved, to the last bit."""
        parts: dict[str, Weights] = {}
        for name, value in state.tensors.items():
            part, _, key = name.partition(":")
            parts.setdefault(part, {})[key] = value
        self.students.load_state_dict(parts["students"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        for key, live in self.meters.state_dict().items():
            put(live, parts["meters"][key])
        self.tables = {key: value.to(self.hardware.device) for key, value in parts.get("memory", {}).items()}
        if self.coordinator is not None:
            self.coordinator.load_state_dict(parts["coordinator"])
            restore_optimizer(self.coordinator_optimizer, parts.get("coordinator_optimizer", {}))
        if self.instance_weights is not None:
            for key, live in self.instance_weights.state_dict().items():
                put(live, parts["weighed"][key])
        self.best_weights = {
            part.removeprefix("best/"): weights for part, weights in parts.items() if part.startswith("best/")
        }
        self.step_index = state.position["number"]
        self.updates = state.position["updates"]
        self.epochs_done = state.position["epochs_done"]
        self.best = dict(state.position["best"])

    def _new_coordinator(self) -> Coordinator:
        section, students = self.plan.coordinator, self.students
        coordinator = seeded(
            lambda: Coordinator(
                section.arch,
                len(students.names),
                len(self.loss_names),
                num_teachers=len(self.teachers),
                mean=self.loader.dataset.mean,
                std=self.loader.dataset.std,
                scale=section.scale,
                normalise=section.normalise,
                total=section.total,
                control=section.control,
                shared=section.shared,
                overrides=self.students.overrides,
            ),
            self.plan.seed,
            "coordinator",
        )
        return coordinator.to(self.hardware.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def _coordinator_learns(self) -> bool:
        section = self.plan.coordinator
        if self.coordinator is None or section.control == "frozen":
            return False
        return (self.step_index if section.unit == "step" else self.epochs_done) % section.every == 0

    def _seen_by(self, name: str, x: Tensor, stored: Tensor | None) -> Tensor:
        """A teacher's logits of the images, [n, C]: computed, unless they are stored."""
        return forward_in_chunks(self.teachers[name], x) if stored is None or name != TEACHER else stored

    def _stored(self, batch: Batch) -> Tensor | None:
        """The teacher's logits of the batch from the stored view of this epoch, [n, C]."""
        if self.teacher_logits is None or TEACHER not in self.teachers:
            return None
        epoch = self.step_index // self.loader.num_steps
        if self.view_logits is None or self.view_logits[0] != epoch:
            self.view_logits = epoch, self.teacher_logits(epoch)
        return self.view_logits[1][batch.ids]

    def _coordinator_outputs(self, inputs: CoordinatorInputs, size: int, autocast: bool) -> Tensor:
        """C-NET's outputs for the whole batch."""
        assert self.coordinator is not None
        with self.hardware.autocast(autocast):
            outputs: Tensor = self.coordinator(*inputs)
        return self.processes.gather(outputs, size)

    def _weigh(self, p: Tensor) -> Tensor:
        """The weights of this process's shard from the whole batch's outputs: its means, its permutation."""
        assert self.coordinator is not None
        permutation = None
        if self.coordinator.control == "shuffle":
            permutation = torch.randperm(len(p), generator=self._draw("shuffle")).to(p.device)
        return self.processes.shard(self.coordinator.weigh(p, permutation))

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's running statistics, which each process has moved by its own shard."""
        if self.processes.world == 1:
            return []
        modules = [self.students] if self.coordinator is None else [self.students, self.coordinator]
        return [b for module in modules for name, b in module.named_buffers() if "running_" in name]

    def _seed_dropout(self) -> None:
        """What draws from torch's global generator (dropout, stochastic depth) is a function of the step, too."""
        if self.graphs.recording:  # a step that draws is not replayed, and a generator cannot be seeded in a graph
            return
        torch.manual_seed(seed_of("dropout", self.plan.seed, self.plan.name, self.step_index, self.processes.rank))

    def _draw(self, purpose: str) -> torch.Generator:
        self.graphs.host_is_asked()
        return generator("step", self.plan.seed, self.plan.name, purpose, self.step_index)

    def _current_step_index(self) -> int:
        self.graphs.host_is_asked()
        return self.step_index

    def _set_learning_rate(self) -> None:
        lr = self._learning_rate(self.step_index)
        for group in self.optimizer.param_groups:
            group["lr"] = lr if self.lr is None else self.lr
        if self.lr is not None:
            self.lr.fill_(lr)

    def _learning_rate(self, step_index: int) -> float:
        """η of a step, by its position: cosine annealing per step to 0 (A.3), or constant."""
        lr: float = self.plan.sgd["lr"]
        if self.plan.schedule == "cosine":
            lr *= 0.5 * (1 + math.cos(math.pi * step_index / self.num_steps))
        return lr

    def _has_buffer(self, group: Mapping[str, Any]) -> bool:
        return self.optimizer.state.get(group["params"][0], {}).get("momentum_buffer") is not None


def costs(losses: Tensor, z_teachers: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """The step's losses, [n, k, c], and the teachers' own cross-entropy against the label: [n, k·c + teachers]."""
    own = [cross_entropy(z[:, None], y) for z in z_teachers.values()]
    return torch.cat([losses.detach().flatten(1), *own], dim=1)


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]

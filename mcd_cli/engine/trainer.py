"""One stage of training: Algorithm 1, for every method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mcd_cli.data.loader import Batch, Loader
from mcd_cli.engine.checkpoint import optimizer_tensors, put, restore_optimizer
from mcd_cli.engine.cuda_graphs import Graphs, Recorder
from mcd_cli.engine.evaluation import each_logits, num_correct, predictions
from mcd_cli.engine.hardware import Hardware
from mcd_cli.engine.instance_weights import Weighed
from mcd_cli.engine.meters import Meters
from mcd_cli.engine.non_finite import PATIENCE, Finite
from mcd_cli.engine.optimizers import coordinator_optimizer, students_optimizer
from mcd_cli.engine.results import Weights
from mcd_cli.engine.stages import StagePlan
from mcd_cli.engine.teacher_logits import Views
from mcd_cli.methods.base import TEACHER, Step, Survey
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.models.students import Students, forward_in_chunks, promote_to_float32, seeded
from mcd_cli.ops import meta_gradient
from mcd_cli.ops.losses import cross_entropy, instance_losses
from mcd_cli.seeds import generator, seed_of

Sight = tuple[Tensor, ...]
"""What C-NET looks at: the images, [n, 3, H, W], and, where it sees losses, what they cost, [n, k·c + teachers]."""


class Trainer:
    """A stage's live state and its steps. Everything random is a function of seeds and of `number`, the steps made."""

    def __init__(
        self,
        plan: StagePlan,
        students: Students,
        teachers: Mapping[str, nn.Module],
        loader: Loader,
        hardware: Hardware,
        views: Views | None = None,
        recorder: Recorder | None = None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        """views: the teacher's stored logits; None: it runs in every step. recorder: of graphs; None: no graphs."""
        self.plan = plan
        self.loader = loader
        self.hardware = hardware
        self.processes = hardware.processes
        self.views = views
        self.view: tuple[int, Tensor] | None = None  # of that epoch
        self.teachers = {name: teachers[name] for name in plan.stage.teachers}
        self.students = students.to(hardware.device).train()
        self.optimizer = students_optimizer(students.networks.values(), plan.sgd)
        # The host runs ahead of one GPU: what changes from step to step, or decides, stays there.
        ahead = hardware.runs_ahead or recorder is not None
        self.eta = torch.zeros((), device=hardware.device) if ahead else None
        self.finite = Finite(students.names, plan.name, hardware.device, deferred=ahead)
        self.symbols = plan.method.symbols(plan.stage)
        self.coordinator: Coordinator | None = None
        self.weighed: Weighed | None = None
        if plan.method.learned:
            self.coordinator = self._new_coordinator()
            self.coordinator_optimizer = coordinator_optimizer(self.coordinator, plan.coordinator, ahead)
            num_images = len(loader.dataset.labels)
            self.weighed = Weighed(num_images, len(students.names), len(self.symbols), hardware.device)
        self.meters = Meters(len(students.names), len(self.symbols), hardware.device)
        if ahead:
            for optimizer in self._optimizers():
                optimizer.found_inf = self.finite.found  # type: ignore[attr-defined]
        self.graphs = Graphs(recorder, hardware.device, warn)
        self.ordinary_step = self.graphs.of("the training step", self._ordinary_step, self._written)
        self.meta_step = self.graphs.of("the meta step", self._meta_step, self._written)
        self.evaluated = self.graphs.of("evaluation", self.students, list)
        self.number = 0
        self.updates = 0
        self.epochs_done = 0
        self.best: dict[str, int] = {}  # right answers on V
        self.best_weights: dict[str, Weights] = {}
        self.memory: dict[str, Tensor] = {}

    @property
    def num_steps(self) -> int:
        return self.plan.epochs * self.loader.num_steps

    def prepare(self, few: Tensor | None = None) -> None:
        """The method's pass before the first step; `few`: over these images alone, to see what it costs."""
        train = self.loader.dataset.train if few is None else few
        survey = Survey(
            ids=train,
            labels=self.loader.dataset.labels[train],
            num_images=len(self.loader.dataset.images),
            logits=lambda: each_logits(self.students, self.loader, train, lambda z: z),
        )
        self.memory = {name: table.to(self.hardware.device) for name, table in self.plan.method.prepare(survey).items()}

    def epochs(self) -> Iterator[Iterator[None]]:
        """The epochs still to train, each as its remaining steps; evaluation follows when an epoch is exhausted."""
        while self.epochs_done < self.plan.epochs:
            yield self._steps()

    def _steps(self) -> Iterator[None]:
        start = self.number - self.epochs_done * self.loader.num_steps
        for batch in self.loader.epoch(self.epochs_done, start, self.views.num_views if self.views else 0):
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
        self.number += 1
        if self.number % PATIENCE == 0:
            self.finite.refuse(self.number)

    def _ordinary_step(self, batch: Batch, stored: Tensor | None) -> None:
        self._descend(batch, stored, learns=False)

    def _meta_step(self, batch: Batch, stored: Tensor | None, validation: Batch) -> None:
        theta = {name: p.detach().clone() for name, p in self.students.named_parameters()}
        c = [meta_gradient.step_size(group, self._has_buffer(group)) for group in self.optimizer.param_groups]
        losses_of, sight = self._descend(batch, stored, learns=True)
        assert sight is not None
        self.optimizer.zero_grad()
        self._update_coordinator(batch, validation, sight, theta, losses_of, c)

    def _descend(
        self, batch: Batch, stored: Tensor | None, learns: bool
    ) -> tuple[Callable[[Tensor], Tensor], Sight | None]:
        """The students' step by Eq. 8; returns their losses as a function of logits, and what C-NET looked at.

        stored: the teacher's logits of the batch; learns: φ will be differentiated through this step.
        """
        x, y = batch.images, batch.labels
        with torch.no_grad(), self.hardware.autocast():
            z_teachers = {name: promote_to_float32(self._seen_by(name, x, stored)) for name in self.teachers}
        with self.hardware.autocast(not learns):  # the step that φ differentiates runs in float32
            z = self.students(x)

        step = Step(batch.ids, y, z.detach(), z_teachers, self.memory, self._position, self._draw)
        guides = self.plan.method.guides(step)

        def losses_of(logits: Tensor) -> Tensor:
            return instance_losses(logits, y, guides, self.plan.tau)

        losses = losses_of(z)  # [n, k, c]
        self.finite.check(self.number, logits=z, loss=losses)
        with torch.no_grad():
            p = sight = None
            if self.coordinator is not None:
                sight = (x, costs(losses, z_teachers, y)) if self.coordinator.sees_losses else (x,)
                p = self._coordinator_outputs(sight, batch.size, not learns)
            w = self.plan.method.weights(step) if p is None else self._weigh(p)
            w = w.expand_as(losses)
        loss = (w * losses).sum() / batch.size  # Σ_j of Eq. 3, Eq. 5; its shard of the mean over images

        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.all_reduce_(_gradients(self.students), means=self._statistics())
        self.optimizer.step()  # Eq. 8
        right = (step.logits.argmax(dim=-1) == y[:, None]).double()
        seen = [self.processes.gather(t, batch.size) for t in (right, losses.detach(), w)]
        self.meters.add(*seen, p=p)
        if self.weighed is not None:
            self.weighed.add(self.processes.gather(batch.ids, batch.size), seen[-1])
        return losses_of, sight

    def _update_coordinator(
        self,
        batch: Batch,
        validation: Batch,
        sight: Sight,
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
        p = meta_gradient.without_side_effects(self.coordinator, parameters, *sight)
        w = self._weigh(self.processes.gather(p, batch.size))
        self.coordinator_optimizer.zero_grad()
        (w * gradient).sum().backward()
        self.processes.all_reduce_(_gradients(self.coordinator))
        self.coordinator_optimizer.step()

    def end_epoch(self) -> dict[str, Any]:
        """Evaluate on V, keep each student's best; returns the epoch's line for metrics.jsonl."""
        self.finite.refuse(self.number)
        val = self.loader.dataset.val
        predicted = predictions(self.students, self.loader, val, self.evaluated)
        correct = num_correct(predicted, self.loader, val).tolist()
        summary = self.meters.summary(self.students.names, self.symbols, self.coordinator is not None)
        for name, right in zip(self.students.names, correct, strict=True):
            summary[name]["val_accuracy"] = right / len(val)
            if right > self.best.get(name, -1) or self.plan.on_val:
                self.best[name] = right
                self.best_weights[name] = self.current(name)
        self.meters.reset()
        self.epochs_done += 1
        if self.weighed is not None and self.epochs_done == self.plan.epochs:
            told = self.weighed.summary(self.students.names, self.symbols, self.loader.dataset)
            for name, images in told.items():
                summary[name]["images"] = images
        return {
            "stage": self.plan.name,
            "epoch": self.epochs_done,
            "step": self.number,
            "lr": self._learning_rate(self.number - 1),
            "coordinator_updates": self.updates,
            **({} if self.coordinator is None else {"normalise": self.plan.coordinator.normalise}),
            "students": summary,
            **(self.plan.method.summary(self.memory) if self.epochs_done == 1 else {}),
        }

    def current(self, name: str) -> Weights:
        """That student's weights now, as copies on the CPU."""
        state = self.students.networks[name].state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that a checkpoint holds of this stage. Raises RunFailed where a student is not finite."""
        self.finite.refuse(self.number)
        best = {f"best/{name}": weights for name, weights in self.best_weights.items()}
        parts = self._moving_parts() | {"memory": self.memory} | best
        return {f"{part}:{key}": value for part, content in parts.items() for key, value in content.items()}

    def _moving_parts(self) -> dict[str, Mapping[str, Tensor]]:
        """What a step writes to, in place."""
        parts: dict[str, Mapping[str, Tensor]] = {
            "students": self.students.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "meters": self.meters.tensors(),
        }
        if self.coordinator is not None:
            parts["coordinator"] = self.coordinator.state_dict()
            parts["coordinator_optimizer"] = optimizer_tensors(self.coordinator_optimizer)
        if self.weighed is not None:
            parts["weighed"] = self.weighed.tensors()
        return parts

    def _written(self) -> list[Tensor]:
        """All of them, and the device's own verdict."""
        return [t for part in self._moving_parts().values() for t in part.values()] + self.finite.tensors()

    def _optimizers(self) -> list[torch.optim.Optimizer]:
        return [self.optimizer] if self.coordinator is None else [self.optimizer, self.coordinator_optimizer]

    def position(self) -> dict[str, Any]:
        return {
            "number": self.number,
            "updates": self.updates,
            "epochs_done": self.epochs_done,
            "best": self.best,
        }

    def restore(self, tensors: Mapping[str, Tensor], position: Mapping[str, Any]) -> None:
        """Become the trainer that was saved, to the last bit."""
        parts: dict[str, Weights] = {}
        for name, value in tensors.items():
            part, _, key = name.partition(":")
            parts.setdefault(part, {})[key] = value
        self.students.load_state_dict(parts["students"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        for key, live in self.meters.tensors().items():
            put(live, parts["meters"][key])
        self.memory = {key: value.to(self.hardware.device) for key, value in parts.get("memory", {}).items()}
        if self.coordinator is not None:
            self.coordinator.load_state_dict(parts["coordinator"])
            restore_optimizer(self.coordinator_optimizer, parts.get("coordinator_optimizer", {}))
        if self.weighed is not None:
            for key, live in self.weighed.tensors().items():
                put(live, parts["weighed"][key])
        self.best_weights = {
            part.removeprefix("best/"): weights for part, weights in parts.items() if part.startswith("best/")
        }
        self.number = position["number"]
        self.updates = position["updates"]
        self.epochs_done = position["epochs_done"]
        self.best = dict(position["best"])

    def _new_coordinator(self) -> Coordinator:
        section, students = self.plan.coordinator, self.students
        coordinator = seeded(
            lambda: Coordinator(
                section.arch,
                len(students.names),
                len(self.symbols),
                num_teachers=len(self.teachers),
                mean=self.loader.dataset.mean,
                std=self.loader.dataset.std,
                scale=section.scale,
                normalise=section.normalise,
                total=section.total,
                control=section.control,
                shared=section.shared,
                sync=self.students.sync,
            ),
            self.plan.seed,
            "coordinator",
        )
        return coordinator.to(self.hardware.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload, no-any-return]

    def _coordinator_learns(self) -> bool:
        section = self.plan.coordinator
        if self.coordinator is None or section.control == "frozen":
            return False
        return (self.number if section.unit == "step" else self.epochs_done) % section.every == 0

    def _seen_by(self, name: str, x: Tensor, stored: Tensor | None) -> Tensor:
        """A teacher's logits of the images, [n, C]: computed, unless they are stored."""
        return forward_in_chunks(self.teachers[name], x) if stored is None or name != TEACHER else stored

    def _stored(self, batch: Batch) -> Tensor | None:
        """The teacher's logits of the batch from the stored view of this epoch, [n, C]."""
        if self.views is None or TEACHER not in self.teachers:
            return None
        epoch = self.number // self.loader.num_steps
        if self.view is None or self.view[0] != epoch:
            self.view = epoch, self.views(epoch)
        return self.view[1][batch.ids]

    def _coordinator_outputs(self, sight: Sight, size: int, autocast: bool) -> Tensor:
        """C-NET's outputs for the whole batch."""
        assert self.coordinator is not None
        with self.hardware.autocast(autocast):
            outputs: Tensor = self.coordinator(*sight)
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
        torch.manual_seed(seed_of("dropout", self.plan.seed, self.plan.name, self.number, self.processes.rank))

    def _draw(self, purpose: str) -> torch.Generator:
        self.graphs.host_is_asked()
        return generator("step", self.plan.seed, self.plan.name, purpose, self.number)

    def _position(self) -> int:
        self.graphs.host_is_asked()
        return self.number

    def _set_learning_rate(self) -> None:
        eta = self._learning_rate(self.number)
        for group in self.optimizer.param_groups:
            group["lr"] = eta if self.eta is None else self.eta
        if self.eta is not None:
            self.eta.fill_(eta)

    def _learning_rate(self, number: int) -> float:
        """η of a step, by its position: cosine annealing per step to 0 (A.3), or constant."""
        eta: float = self.plan.sgd["lr"]
        if self.plan.schedule == "cosine":
            eta *= 0.5 * (1 + math.cos(math.pi * number / self.num_steps))
        return eta

    def _has_buffer(self, group: Mapping[str, Any]) -> bool:
        return self.optimizer.state.get(group["params"][0], {}).get("momentum_buffer") is not None


def costs(losses: Tensor, z_teachers: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """The step's losses, [n, k, c], and the teachers' own cross-entropy against the label: [n, k·c + teachers]."""
    own = [cross_entropy(z[:, None], y) for z in z_teachers.values()]
    return torch.cat([losses.detach().flatten(1), *own], dim=1)


def _gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad for p in module.parameters() if p.grad is not None]

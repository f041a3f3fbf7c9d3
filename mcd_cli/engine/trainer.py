"""One stage of training: Algorithm 1, for every method."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mcd_cli.data.loader import Batch, Loader
from mcd_cli.engine.checkpoint import (
    State,
    StateParts,
    join_parts,
    optimizer_tensors,
    restore_optimizer,
    split_parts,
)
from mcd_cli.engine.coordination import Coordination, CoordinatorInputs, LearnedCoordination
from mcd_cli.engine.cuda_graphs import GraphBackend, GraphCapture
from mcd_cli.engine.ema import EMA
from mcd_cli.engine.evaluation import each_logits, num_correct, predictions
from mcd_cli.engine.hardware import Hardware
from mcd_cli.engine.meters import Meters
from mcd_cli.engine.non_finite import PATIENCE, NonFiniteGuard
from mcd_cli.engine.optimizers import LearningRate, gradients, step_sizes, students_optimizer
from mcd_cli.engine.results import Weights
from mcd_cli.engine.stages import StagePlan
from mcd_cli.engine.teacher_logits import TeacherLogits
from mcd_cli.ladder.metrics import EpochRecord
from mcd_cli.losses.bank import instance_losses
from mcd_cli.methods.base import TEACHER, BatchContext, PreparationData
from mcd_cli.models.students import Students, forward_in_chunks, promote_to_float32
from mcd_cli.ops import meta_gradient
from mcd_cli.seeds import generator, seed_of


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
        device = hardware.device
        self.plan = plan
        self.loader = loader
        self.hardware = hardware
        self.processes = hardware.processes
        self.teacher_logits = teacher_logits
        self.teachers = {name: teachers[name] for name in plan.stage.teachers}
        self.students = students.to(device).train()
        self.loss_names = plan.method.loss_names(plan.stage)
        self.bank = plan.method.bank(plan.stage)
        self.progress = torch.zeros((), device=device)  # of the stage, after the current step: for ramps
        # The host runs ahead of one GPU: what changes from step to step, or decides, stays there.
        ahead = hardware.runs_ahead or backend is not None
        self.non_finite = NonFiniteGuard(students.names, plan.name, device, deferred=ahead)
        self.optimizer = students_optimizer(students.networks.values(), map(plan.sgd_of, students.names))
        self.non_finite.halt(self.optimizer)
        self.learning_rate = LearningRate(
            self.optimizer, plan.sgd["lr"], plan.schedule, self.num_steps, device if ahead else None
        )
        self.ema = EMA(self.students, plan.ema) if plan.ema else None
        self.coordination = Coordination(plan, students, device)
        if plan.learned:
            self.coordination = LearnedCoordination(
                plan, students, loader.dataset, hardware, self.non_finite, self.draw
            )
        self.meters = Meters(len(students.names), len(self.loss_names), device)
        self.graphs = GraphCapture(backend, device, warn)
        self.ordinary_step = self.graphs.wrap("the training step", self._ordinary_step, self._written)
        self.meta_step = self.graphs.wrap("the meta step", self._meta_step, self._written)
        self.evaluated = self.graphs.wrap("evaluation", self._logits, list)
        self.ema_evaluated = self.graphs.wrap("evaluation of the average", self._ema_logits, list)
        self.step_index = 0
        self.updates = 0  # of φ
        self.epochs_done = 0
        self.best: dict[str, int] = {}  # correct predictions on val
        self.best_weights: dict[str, Weights] = {}
        self.averaged: list[str] = []  # the students whose EMA was the better in the last evaluation
        self.tables: dict[str, Tensor] = {}

    @property
    def num_steps(self) -> int:
        return self.plan.epochs * self.loader.num_steps

    def prepare(self, subset: Tensor | None = None) -> None:
        """The method's pass before the first step; `subset`: only over these images, to estimate its time."""
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
            yield self.steps()

    def steps(self) -> Iterator[None]:
        """The epoch's remaining steps."""
        start = self.step_index - self.epochs_done * self.loader.num_steps
        num_views = self.teacher_logits.num_views if self.teacher_logits else 0
        for batch in self.loader.epoch(self.epochs_done, start, num_views):
            self.step(batch)
            yield

    def step(self, batch: Batch) -> None:
        """θ^t → θ^{t+1} by Eq. 8; every L-th time φ follows through that very step (Eq. 9)."""
        self.learning_rate.set(self.step_index)
        self.progress.fill_((self.step_index + 1) / self.num_steps)
        if self.ema is not None:
            self.ema.set(self.step_index)
        self._seed_dropout()
        z_stored = self._stored(batch)
        batch = self.mixed(batch)  # before the graphs, which cannot draw
        if self.coordination.learns(self.step_index, self.epochs_done):
            self.meta_step(batch, z_stored, self.loader.validation_batch(self.updates))
            self.updates += 1
        else:
            self.ordinary_step(batch, z_stored)
        self.step_index += 1
        if self.step_index % PATIENCE == 0:
            self.non_finite.refuse(self.step_index)

    def mixed(self, batch: Batch) -> Batch:
        """The batch with its images mixed, if they are: the same in every method's stages."""
        if self.plan.mixing is None:
            return batch
        return self.plan.mixing(batch, generator("mix", self.loader.augment_seed, self.step_index))

    def _ordinary_step(self, batch: Batch, z_stored: Tensor | None) -> None:
        self._descend(batch, z_stored, autocast=True)

    def _meta_step(self, batch: Batch, z_stored: Tensor | None, validation: Batch) -> None:
        """Both steps; the students' one runs in float32, because φ is differentiated through it."""
        theta = {name: p.detach().clone() for name, p in self.students.named_parameters()}
        c = step_sizes(self.optimizer)
        losses_of, inputs = self._descend(batch, z_stored, autocast=False)
        self.optimizer.zero_grad()
        v = meta_gradient.validation_gradient(self.students, validation.images, validation.labels, validation.size)
        self.processes.all_reduce_(list(v.values()))
        self._seed_dropout()  # the same masks as in the real step
        directional = meta_gradient.directional_losses(self.students, theta, v, batch.images, losses_of)
        self.coordination.update(inputs, directional, c, batch.size)  # Eq. 9

    def _descend(
        self, batch: Batch, z_stored: Tensor | None, autocast: bool
    ) -> tuple[Callable[[Tensor], Tensor], CoordinatorInputs]:
        """The students' step by Eq. 8; returns their losses as a function of logits, and what C-NET looked at.

        z_stored: the teacher's stored logits of the batch, if any; autocast: whether the students compute in the run's
        precision or in float32.
        """
        x = batch.images
        with torch.no_grad(), self.hardware.autocast():
            z_teachers = {name: promote_to_float32(self._seen_by(name, x, z_stored)) for name in self.teachers}
        with self.hardware.autocast(autocast):
            z = self.students(x)

        context = BatchContext(
            batch.ids, batch.labels, z.detach(), z_teachers, self.tables, self._current_step_index, self.draw
        )
        targets = self.plan.method.targets(context)

        def losses_of(logits: Tensor) -> Tensor:
            return batch.over_labels(lambda y: instance_losses(logits, y, targets, self.bank, self.progress))

        losses = losses_of(z)  # [n, k, c]
        self.non_finite.check(self.step_index, logits=z, loss=losses)
        with torch.no_grad():
            inputs = self.coordination.inputs(x, losses, context)
            p = self.coordination.outputs(inputs, context, batch.size, autocast)
            w = self.coordination.weigh(p).expand_as(losses)
        loss = (w * losses).sum() / batch.size  # Σ_j of Eq. 3, Eq. 5; its shard of the mean over images

        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.processes.all_reduce_(gradients(self.students), means=self._statistics())
        self.optimizer.step()  # Eq. 8
        if self.ema is not None:
            self.ema.update()
        predicted = context.logits.argmax(dim=-1)
        right = batch.over_labels(lambda y: (predicted == y[:, None]).to(self.meters.dtype))
        right, losses, w = (self.processes.gather(t, batch.size) for t in (right, losses.detach(), w))
        self.meters.add(right, losses, w)
        self.coordination.record(self.meters, batch.ids, p, w)
        return losses_of, inputs

    def end_epoch(self) -> EpochRecord:
        """Evaluate on val, keep each student's best; returns the epoch's line for metrics.jsonl."""
        self.non_finite.refuse(self.step_index)
        num_val = len(self.loader.dataset.val)
        correct = self._correct_on_val(self.students, self.evaluated)
        ema_correct = {} if self.ema is None else self._correct_on_val(self.ema.students, self.ema_evaluated)
        val_accuracy = [right / num_val for right in correct.values()]
        summary = self.meters.summary(self.students.names, self.loss_names, self.plan.learned, val_accuracy)
        # where val is trained on, it cannot choose: the average is what was asked for
        self.averaged = [name for name, right in ema_correct.items() if right > correct[name] or self.plan.on_val]
        correct |= {name: ema_correct[name] for name in self.averaged}
        for name, right in correct.items():
            if right > self.best.get(name, -1) or self.plan.on_val:
                self.best[name] = right
                self.best_weights[name] = self.current(name)
        self.meters.reset()
        self.epochs_done += 1
        images = self.coordination.images() if self.epochs_done == self.plan.epochs else {}
        return EpochRecord(
            stage=self.plan.name,
            epoch=self.epochs_done,
            step=self.step_index,
            lr=self.learning_rate.at(self.step_index - 1),
            coordinator_updates=self.updates,
            normalise=self.coordination.normalise,
            students={
                name: replace(
                    student,
                    images=images.get(name),
                    ema_val_accuracy=ema_correct[name] / num_val if name in ema_correct else None,
                )
                for name, student in summary.items()
            },
            preparation=self.plan.method.summary(self.tables) if self.epochs_done == 1 else {},
        )

    def _correct_on_val(self, students: Students, run: Callable[[Tensor], Tensor]) -> dict[str, int]:
        """Each student's right answers on val. run: the students' forward pass, or its CUDA graph."""
        val = self.loader.dataset.val
        correct = num_correct(predictions(students, self.loader, val, run), self.loader, val)
        return dict(zip(students.names, correct.tolist(), strict=True))

    def current(self, name: str) -> Weights:
        """That student's weights now (their EMA where the last evaluation preferred it), as copies on the CPU."""
        students = self.ema.students if self.ema is not None and name in self.averaged else self.students
        state = students.networks[name].state_dict()
        return {key: value.detach().cpu().clone() for key, value in state.items()}

    def state_dict(self) -> State:
        """All that a checkpoint holds of this stage. Raises RunFailed where a student is not finite.

        Its names are stored in every checkpoint: they stay as they are, whatever the attributes are called.
        """
        self.non_finite.refuse(self.step_index)
        best = {f"best/{name}": weights for name, weights in self.best_weights.items()}
        position: dict[str, Any] = {
            "number": self.step_index,
            "updates": self.updates,
            "epochs_done": self.epochs_done,
            "best": self.best,
        }
        if self.ema is not None:
            position["averaged"] = self.averaged
        return State(join_parts({**self._moving_parts(), "memory": self.tables, **best}), position)

    def load_state_dict(self, state: State) -> None:
        """Become the trainer that was saved, to the last bit."""
        parts = split_parts(state.tensors)
        self.students.load_state_dict(parts["students"])
        restore_optimizer(self.optimizer, parts.get("optimizer", {}))
        self.meters.load_state_dict(parts["meters"])
        self.coordination.load_state_dict(parts)
        if self.ema is not None:
            self.ema.students.load_state_dict(parts["ema"])
        self.tables = {name: table.to(self.hardware.device) for name, table in parts.get("memory", {}).items()}
        self.best_weights = {
            part.removeprefix("best/"): weights for part, weights in parts.items() if part.startswith("best/")
        }
        self.step_index = state.position["number"]
        self.updates = state.position["updates"]
        self.epochs_done = state.position["epochs_done"]
        self.best = dict(state.position["best"])
        self.averaged = list(state.position.get("averaged", []))

    def _moving_parts(self) -> StateParts:
        """What a step writes to, in place."""
        return {
            "students": self.students.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "meters": self.meters.state_dict(),
            "ema": {} if self.ema is None else self.ema.students.state_dict(),
            **self.coordination.state_dict(),
        }

    def _written(self) -> list[Tensor]:
        """All of these, and the device's record of non-finite values."""
        return [*join_parts(self._moving_parts()).values(), *self.non_finite.tensors()]

    def _logits(self, x: Tensor) -> Tensor:
        z: Tensor = self.students(x)
        return z

    def _ema_logits(self, x: Tensor) -> Tensor:
        assert self.ema is not None
        z: Tensor = self.ema.students(x)
        return z

    def _stored(self, batch: Batch) -> Tensor | None:
        """The teacher's logits of the batch from the stored view of this epoch, [n, C]."""
        if self.teacher_logits is None or TEACHER not in self.teachers:
            return None
        return self.teacher_logits(self.step_index // self.loader.num_steps)[batch.ids]

    def _seen_by(self, name: str, x: Tensor, z_stored: Tensor | None) -> Tensor:
        """A teacher's logits of the images, [n, C]: computed, unless they are stored."""
        return forward_in_chunks(self.teachers[name], x) if z_stored is None or name != TEACHER else z_stored

    def _statistics(self) -> list[Tensor]:
        """BatchNorm's running statistics, which each process has moved by its own shard."""
        if self.processes.world == 1:
            return []
        modules = [self.students, *self.coordination.networks]
        return [b for module in modules for name, b in module.named_buffers() if "running_" in name]

    def _seed_dropout(self) -> None:
        """What draws from torch's global generator (dropout, stochastic depth) is a function of the step, too."""
        if self.graphs.recording:  # a step that draws is not replayed, and a generator cannot be seeded in a graph
            return
        torch.manual_seed(seed_of("dropout", self.plan.seed, self.plan.name, self.step_index, self.processes.rank))

    def draw(self, purpose: str) -> torch.Generator:
        """A random generator for the current step, by purpose."""
        self.graphs.host_is_asked()
        return generator("step", self.plan.seed, self.plan.name, purpose, self.step_index)

    def _current_step_index(self) -> int:
        self.graphs.host_is_asked()
        return self.step_index

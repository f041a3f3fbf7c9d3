"""A whole run: teacher, warm start, the method's stages, and the test set, read once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mcd_cli.data import load_dataset
from mcd_cli.data.augment import PRESETS
from mcd_cli.data.loader import Loader
from mcd_cli.engine import teacher as teachers
from mcd_cli.engine.checkpoint import State, checked_position, state_of_another
from mcd_cli.engine.checkpointer import Checkpointer, changes, refuse_changes
from mcd_cli.engine.cuda_graphs import CudaGraphBackend, GraphBackend
from mcd_cli.engine.estimate import seconds_of_stage
from mcd_cli.engine.events import EpochEnded, InfoMessage, Listener, StageEnded, StageStarted, StepEnded, WarningMessage
from mcd_cli.engine.finalize import write_ladder
from mcd_cli.engine.hardware import Hardware, memory_for_images, prepare
from mcd_cli.engine.preflight import check_network, check_teacher
from mcd_cli.engine.results import Result, Results
from mcd_cli.engine.signals import Stop, stop_on_signal
from mcd_cli.engine.stages import StagePlan, plan_stages
from mcd_cli.engine.teacher import Teacher
from mcd_cli.engine.teacher_logits import NoTeacherLogits, TeacherLogits
from mcd_cli.engine.trainer import Trainer
from mcd_cli.errors import UserError
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.metrics import WARM_START, degenerate
from mcd_cli.methods import METHODS
from mcd_cli.methods.base import TEACHER
from mcd_cli.models import build, load_pretrained
from mcd_cli.models.students import Students, freeze
from mcd_cli.ops import batch_norm, batch_norm_cpu, convolution
from mcd_cli.ops.distributed import check_shards
from mcd_cli.ops.overrides import Override, Overrides
from mcd_cli.quantities import Interval, interval, show_size, show_time
from mcd_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class RunOptions:
    """What may differ between two runs of one recipe."""

    device: str = "auto"
    threads: int | None = None
    force: bool = False
    skip_bad_images: bool = False
    max_memory: int | None = None  # bytes of images held in memory; None: half of the free memory
    eager: bool = False  # no CUDA graphs


class Run:
    """One run of a recipe: its data, its planned stages, and the results of the finished ones."""

    def __init__(self, recipe: Recipe, folder: RunFolder | None, options: RunOptions, emit: Listener) -> None:
        """folder: None in a process that does not write. Reads the last state in it, if there is one."""
        self.recipe = recipe
        self.folder = folder
        self.emit = emit
        self.force = options.force
        self.eager = options.eager
        self.hardware: Hardware = prepare(options.device, recipe.precision, options.threads, recipe.deterministic)
        self.processes = self.hardware.processes
        if not recipe.deterministic:
            emit(
                InfoMessage(
                    "deterministic = false (--fast): kernels are chosen by timing; a rerun will not be bit-identical"
                )
            )
        check_shards(recipe.batch_size, "a batch", self.processes)
        every = recipe.checkpoint.every
        self.checkpointer = Checkpointer(folder, self.processes, Interval() if every is None else interval(every))
        self.state = self.checkpointer.load(emit)
        on_host, on_device = memory_for_images(self.hardware, options.max_memory)
        self.dataset = load_dataset(
            recipe.dataset,
            data_root=recipe.data_root,
            image_size=recipe.image_size,
            split_seed=recipe.split_seed,
            label_noise=recipe.label_noise,
            skip_bad_images=options.skip_bad_images,
            max_memory=on_host,
            report=lambda line: emit(InfoMessage(line)),
        )
        self.loader = Loader(
            self.dataset,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            augmentation=PRESETS[recipe.augment.preset],
            augment_seed=recipe.augment_seed,
            device=self.hardware.device,
            processes=self.processes,
            memory=on_device,
        )
        if METHODS[recipe.method].learned:
            check_shards(min(recipe.batch_size, len(self.dataset.val)), "a mini-batch of val", self.processes)
        if self.loader.streams:
            emit(
                InfoMessage(f"{show_size(self.dataset.images.nbytes)} of images are streamed from disk (--max-memory)")
            )
        self.teacher = self._find_teacher()
        self.plans = plan_stages(recipe, self.dataset.num_classes, train_teacher=self.teacher is None)
        self.results = Results()
        self.live: Trainer  # of the current stage

    def _find_teacher(self) -> Teacher | None:
        """The teacher from a file or from the cache; None if the run trains it. A resumed run keeps its choice."""
        sha256 = None
        if self.state is not None:
            with state_of_another():
                sha256 = self.state.position["identity"]["teacher"]
            if sha256 is None:
                return None
        teacher = teachers.find_teacher(self.recipe, self.dataset, self.hardware, sha256)
        return teacher if self._all_agree(teacher) else None

    def _all_agree(self, teacher: Teacher | None) -> bool:
        """Whether all processes have the same teacher. Raises UserError if their data or teacher files differ."""
        mine = self.dataset.fingerprint, teacher and teacher.sha256
        first = self.processes.broadcast(mine)
        if self.processes.any(mine[0] != first[0]):
            raise UserError(f"the processes read different data for {self.recipe.dataset!r}; give all the same files")
        alike = not self.processes.any(mine[1] != first[1])
        if not alike and self.recipe.teacher.file is not None:
            raise UserError(f"the processes read different files as {self.recipe.teacher.file}; give all the same file")
        return alike

    def check(self) -> None:
        """Check before training that every network takes the images and that the teacher is better than chance."""
        for name, arch in self.recipe.students.items():
            check_network(f"student {name} ({arch})", build(arch, self.dataset.num_classes), self.loader)
        if self.teacher is not None:
            check_network(f"teacher {self.teacher.path}", self.teacher.network, self.loader)
            check_teacher(self.teacher, self.loader, self.force, self.emit)
        if self.recipe.train_on_val:
            self.emit(
                WarningMessage(
                    "training uses val: it chooses no checkpoint, and accuracy on val says nothing about new images"
                )
            )

    @property
    def num_steps(self) -> int:
        """The number of steps in all stages, from the start."""
        return sum(plan.epochs for plan in self.plans) * self.loader.num_steps

    def seconds_by_stage(self) -> dict[str, float]:
        """The estimated seconds of every stage, by name."""
        return {p.name: seconds_of_stage(p.epochs, self.trainer(p, rehearsal=True)) for p in self.plans}

    def estimate(self) -> float:
        """Print the estimate; returns it in seconds."""
        total = sum(self.seconds_by_stage().values())
        names = ", ".join(f"{plan.name} {plan.epochs} epochs" for plan in self.plans)
        self.emit(InfoMessage(f"{names}: about {show_time(total)} on this {self.hardware.device.type}"))
        return total

    def train(self, given: Mapping[str, Result] | None = None) -> Ladder | None:
        """Run all stages, from the last state if there is one, and write the manifest (None: another process does).

        given: finished stages of other runs, by name, which are reused instead of trained again.
        """
        self._train(given or {})
        assert self.teacher is not None
        return write_ladder(self.recipe, self.folder, self.loader, self.teacher, self.results, self.hardware, self.emit)

    def start(self, until: str) -> Results:
        """Run only the stages up to TEACHER or WARM_START, whose results other runs can reuse."""
        self._train({}, (TEACHER, WARM_START)[: (TEACHER, WARM_START).index(until) + 1])
        return self.results

    def _train(self, given: Mapping[str, Result], wanted: Sequence[str] | None = None) -> None:
        checkpointer, state = self.checkpointer, self.state
        checkpointer.about = {"identity": self.identity(), "hardware": self.hardware.describe()}
        if state is not None:
            with state_of_another():
                refuse_changes(state.position["identity"], checkpointer.about["identity"])
            if changed := changes(state.position["hardware"], checkpointer.about["hardware"]):
                self.emit(WarningMessage(f"{changed}: the results will not be bit-identical to an uninterrupted run's"))
        with stop_on_signal() as stop:
            plans = [plan for plan in self.plans if wanted is None or plan.name in wanted]
            for plan, file in zip(plans, checkpointer.finished_stages, strict=False):
                with state_of_another():
                    result = checkpointer.load_stage(file)
                    self._check_weights(plan, result)
                    self._finish(plan, result)
            for plan in plans[len(checkpointer.finished_stages) :]:
                if plan.name in given and not (state is not None and state.tensors):
                    self._finish(plan, given[plan.name])
                    checkpointer.save_stage(plan.name, given[plan.name])
                    continue
                trainer = self.live = self.trainer(plan)
                if state is not None and state.tensors:
                    with state_of_another():
                        trainer.load_state_dict(State(state.tensors, checked_position(state.position["trainer"])))
                else:
                    trainer.prepare()
                state = self.state = None  # it belongs only to this stage
                self._fit(trainer, stop)
                result = Result(trainer.best_weights, {name: trainer.current(name) for name in trainer.students.names})
                self._finish(plan, result)
                checkpointer.save_stage(plan.name, result)

    def _check_weights(self, plan: StagePlan, result: Result) -> None:
        """Raises KeyError or RuntimeError if a finished stage's file does not contain its students."""
        for name in plan.stage.students:
            network = build(self._arch(name), self.dataset.num_classes)
            for weights in (result.best[name], result.last[name]):
                network.load_state_dict(weights)

    def _finish(self, plan: StagePlan, result: Result) -> None:
        self.results[plan.name] = result
        if plan.name == TEACHER:
            self._adopt_teacher()

    def _fit(self, trainer: Trainer, stop: Stop) -> None:
        plan = trainer.plan
        students = trainer.students.names
        self.emit(StageStarted(plan.name, students, plan.epochs, trainer.num_steps, trainer.step_index))
        warned: set[str] = set()
        for steps in trainer.epochs():
            for _ in steps:
                self.emit(StepEnded(plan.name, trainer.step_index))
                self.checkpointer.after_step(trainer, stop)
            record = trainer.end_epoch()
            self.checkpointer.log(record)
            self.emit(EpochEnded(record))
            for warning in degenerate(record):
                if warning not in warned:
                    self.emit(WarningMessage(warning))
                    warned.add(warning)
            self.checkpointer.save(trainer)
        num_val = len(self.dataset.val)
        accuracy = {name: trainer.best[name] / num_val for name in students}
        self.emit(StageEnded(plan.name, accuracy))

    def trainer(self, plan: StagePlan, rehearsal: bool = False) -> Trainer:
        """The stage's trainer before its first step; a rehearsal uses fresh networks for missing ones."""
        loader = self._loader(plan)
        return Trainer(
            plan,
            self._students(plan, rehearsal),
            {name: self.finished(name, rehearsal) for name in plan.stage.teachers},
            loader,
            self.hardware,
            self._teacher_logits(plan, loader, rehearsal),
            self.graph_backend(),
            lambda line: None if rehearsal else self.emit(WarningMessage(line)),
        )

    def _students(self, plan: StagePlan, rehearsal: bool) -> Students:
        """The networks that the stage trains, with their initial weights: those of the warm start, if there was one."""
        students = Students(
            {name: self._arch(name) for name in plan.stage.students},
            self.dataset.num_classes,
            mean=self.dataset.mean,
            std=self.dataset.std,
            seed=self.recipe.seed,
            role="teacher" if plan.name == TEACHER else "student",
            overrides=self._overrides(),
        )
        for name, weights in self.results.warm_started().items():
            if name in students.names:
                students.networks[name].load_state_dict(weights)
        begins = self.state is None or not self.state.tensors
        if plan.name == TEACHER and self.recipe.teacher.pretrained and begins and not rehearsal:
            filled = load_pretrained(students.networks[TEACHER], self._arch(TEACHER))
            self.emit(InfoMessage(f"teacher: {filled} tensors start from the published weights"))
        return students

    def _arch(self, name: str) -> str:
        return str(self.recipe.teacher.arch) if name == TEACHER else self.recipe.students[name]

    def _loader(self, plan: StagePlan) -> Loader:
        """The loader of the images that the stage trains on."""
        if plan.name == TEACHER and self.recipe.teacher.unseen:
            return self.loader.training_on(teachers.seen_images(self.dataset, self.recipe.teacher.unseen))
        if plan.on_val:
            return self.loader.training_on(torch.cat([self.dataset.train, self.dataset.val]).sort().values)
        return self.loader

    def _overrides(self) -> Overrides | None:
        """For what torch computes wrongly, slowly or for only one process; None avoids a Python call per operator."""
        replacements: dict[Override, Override] = {}
        if self.hardware.device.type == "cpu":
            replacements |= convolution.UNSTRIDED | batch_norm_cpu.NARROW
        if self.recipe.sync_bn and self.processes.world > 1:
            replacements |= batch_norm.synced(self.processes)
        return Overrides(replacements) if replacements else None

    def graph_backend(self) -> GraphBackend | None:
        """For a stage's CUDA graphs. A step or a network that cannot be captured runs eagerly."""
        return CudaGraphBackend(self.hardware.device) if self.hardware.runs_ahead and not self.eager else None

    def _teacher_logits(self, plan: StagePlan, loader: Loader, rehearsal: bool) -> TeacherLogits | None:
        """The teacher's stored logits if the recipe sets `teacher.views`, for the method's own stages."""
        num_views = self.recipe.teacher.views
        if not num_views or plan.name in (TEACHER, WARM_START) or self.teacher is None:
            return None
        kind = NoTeacherLogits if rehearsal else TeacherLogits
        return kind(self.teacher, loader, self.hardware, num_views, self.emit)

    def finished(self, name: str, rehearsal: bool = False) -> nn.Module:
        """The teacher, or a student whose stage is done, as a frozen network."""
        if name == TEACHER and self.teacher is not None:
            return self.teacher.network
        network = build(self._arch(name), self.dataset.num_classes)
        if not rehearsal:
            network.load_state_dict(self.results.distilled().best[name])
        return freeze(network, self.dataset.mean, self.dataset.std).to(self.hardware.device)

    def _adopt_teacher(self) -> None:
        """Save the teacher that this run has trained in the cache, and read it back from there."""
        path = teachers.trained_path(self.recipe, self.dataset, self.hardware)
        weights = self.results[TEACHER].best[TEACHER]
        arch = self._arch(TEACHER)
        teachers.keep_trained(path, weights, arch, self.dataset)
        self.teacher = teachers.read_teacher(path, arch, "auto", self.dataset, self.hardware.device, was_given=False)

    def identity(self) -> dict[str, Any]:
        """What must be unchanged when the run is resumed."""
        trained_here = self.plans[0].name == TEACHER
        return {
            "recipe": self.recipe.content(),
            "data set": self.dataset.fingerprint,
            "stages": [plan.name for plan in self.plans],
            "teacher": None if trained_here or self.teacher is None else self.teacher.sha256,
        }

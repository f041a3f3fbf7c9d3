"""The stages of a run: what each trains, from which settings, in which order."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mcd_cli.data.mixing import Mixing
from mcd_cli.errors import UserError
from mcd_cli.ladder.metrics import WARM_START
from mcd_cli.methods import METHODS
from mcd_cli.methods.base import TEACHER, Method, Stage
from mcd_cli.methods.ce import CE
from mcd_cli.models import build
from mcd_cli.recipe.schema import CoordinatorSection, Recipe, StudentSection


@dataclass(frozen=True)
class StagePlan:
    """What a stage trains and how long."""

    name: str
    method: Method
    stage: Stage
    epochs: int
    sgd: Mapping[str, Any]  # lr, momentum, weight_decay, nesterov
    schedule: str
    coordinator: CoordinatorSection
    seed: int
    learned: bool = False  # a C-NET sets the weights of the losses
    own: Mapping[str, StudentSection] = field(default_factory=dict)  # single students' settings, by name
    mixing: Mixing | None = None
    ema: float = 0.0  # decay of the average of the weights; 0: no average
    on_val: bool = False  # also trains on val, so no checkpoint is chosen on it: the last epoch counts

    def sgd_of(self, student: str) -> dict[str, Any]:
        """That student's lr, momentum, weight_decay, nesterov."""
        own = self.own.get(student, StudentSection()).model_dump(include={"lr", "weight_decay"}, exclude_none=True)
        return {**self.sgd, **own}

    def total_of(self, student: str) -> float:
        """The factor on that student's loss, beside `distill.total`, which the method's weights hold."""
        total = self.own.get(student, StudentSection()).total
        return 1.0 if total is None else total / self.method.settings.total


def plan_stages(recipe: Recipe, num_classes: int, *, train_teacher: bool) -> list[StagePlan]:
    """The teacher if the run trains it, the warm start, then the method's own stages. Raises UserError."""
    method = METHODS.load(recipe.method)(recipe.distill)
    learned = METHODS[recipe.method].learned
    if recipe.train_on_val and learned:
        raise UserError(f"train_on_val: {recipe.method} learns its loss weights on val; use a method without a C-NET")
    augment = recipe.augment
    ce = CE(recipe.distill)
    plans = []
    if train_teacher:
        section = recipe.teacher
        plans.append(_plan(recipe, TEACHER, ce, Stage((TEACHER,), ()), section.epochs, _sgd(section)))
    if recipe.warm_start.epochs:
        stage = Stage(tuple(recipe.students), ())
        plans.append(_plan(recipe, WARM_START, ce, stage, recipe.warm_start.epochs, _sgd(recipe.warm_start)))
    stages = method.stages(_by_size(recipe.students, num_classes))
    for stage in stages:
        name = "distill" if len(stages) == 1 else f"distill/{'+'.join(stage.students)}"
        plan = _plan(recipe, name, method, stage, recipe.epochs, _sgd(recipe.optimizer))
        plans.append(
            replace(
                plan,
                learned=learned,
                own=recipe.student,
                mixing=Mixing(augment.mixup, augment.cutmix) if augment.mixup or augment.cutmix else None,
                ema=recipe.ema.decay,
                on_val=recipe.train_on_val,
            )
        )
    return plans


def _plan(recipe: Recipe, name: str, method: Method, stage: Stage, epochs: int, sgd: Mapping[str, Any]) -> StagePlan:
    return StagePlan(
        name,
        method,
        stage,
        epochs,
        sgd,
        recipe.schedule.name,
        recipe.coordinator,
        recipe.seed,
    )


def _by_size(students: Mapping[str, str], num_classes: int) -> list[str]:
    """Students by falling parameter count, ties by name. students: name -> architecture."""

    def params(name: str) -> int:
        return sum(p.numel() for p in build(students[name], num_classes).parameters())

    return sorted(students, key=lambda name: (-params(name), name))


def _sgd(section: Any) -> dict[str, Any]:
    return {
        "lr": section.lr,
        "momentum": section.momentum,
        "weight_decay": section.weight_decay,
        "nesterov": getattr(section, "nesterov", False),
    }

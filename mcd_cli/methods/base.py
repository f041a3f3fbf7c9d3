"""What a method must define. The engine uses only this, and never checks which method it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mcd_cli.losses import TEACHER as TEACHER
from mcd_cli.losses import Term, term
from mcd_cli.methods.settings import DistillSection


@dataclass(frozen=True)
class Stage:
    """Students that train together, and the frozen networks that they see: TEACHER or finished students."""

    students: tuple[str, ...]
    teachers: tuple[str, ...] = (TEACHER,)


@dataclass(frozen=True)
class PreparationData:
    """What a method may look at before a stage's first step: the training images without augmentation, in eval mode."""

    ids: Tensor  # [N] sample ids of the training split (or of a few images, where the pass is only timed)
    labels: Tensor  # [N]
    num_images: int  # of the whole data set: a table indexed by sample id has this length
    logits: Callable[[], Tensor]  # [N, k, C], the stage's students at their start


@dataclass(frozen=True)
class BatchContext:
    """What a method may look at in one step when it sets targets and weights."""

    ids: Tensor  # [n] sample ids
    labels: Tensor  # [n]
    logits: Tensor  # [n, k, C], the students', detached
    teachers: Mapping[str, Tensor]  # name → logits [n, C]
    tables: Mapping[str, Tensor]  # what `prepare` returned
    step_index: Callable[[], int]  # steps before this one in the stage; a step that calls this or draws is not graphed
    draw: Callable[[str], torch.Generator]  # randomness of this step, by purpose


class Method:
    """Base of all methods: every student has only its own losses, with constant weights.

    A method whose weights are learned (`learned` in its row) does not define `weights`.
    """

    losses: tuple[str, ...] = ("alpha",)
    """Names of the loss weights, the label's first; a bank of other losses names them itself (see bank.py)."""

    def __init__(self, settings: DistillSection) -> None:
        self.settings = settings

    def stages(self, students: Sequence[str]) -> list[Stage]:
        """Which students train together, in order. students: names by falling parameter count."""
        return [Stage(tuple(students))]

    def loss_names(self, stage: Stage) -> tuple[str, ...]:
        """The losses of this stage by name."""
        return self.losses

    def bank(self, stage: Stage) -> tuple[Term, ...]:
        """The losses themselves; by default the label's, then kd to each target at `distill.tau`."""
        label, *others = self.loss_names(stage)
        return (term("ce", name=label), *(term("kd", name=name, tau=self.settings.tau) for name in others))

    def prepare(self, data: PreparationData) -> dict[str, Tensor]:
        """A pass before training; what it returns is saved with the run and comes back in every BatchContext."""
        return {}

    def summary(self, tables: Mapping[str, Tensor]) -> dict[str, Any]:
        """The summary of `prepare` in the stage's first line of metrics.jsonl: plain JSON."""
        return {}

    def targets(self, batch: BatchContext) -> Tensor | None:
        """The logits that the bank's losses follow, in order, [n, k or 1, g, C]; None if no loss follows any."""
        return None

    def weights(self, batch: BatchContext) -> Tensor:
        """The weights of the losses, broadcastable to [n, k, c]."""
        raise AssertionError(f"{type(self).__name__} neither learns its weights nor sets them")


def constants(like: Tensor, values: Sequence[float]) -> Tensor:
    """The values, [len(values)], with that tensor's dtype, created on its device: a copy from the host would wait."""
    return torch.stack([like.new_full((), value) for value in values])

"""The events that the engine reports to its listener."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mcd_cli.ladder.metrics import EpochRecord


@dataclass(frozen=True)
class InfoMessage:
    """A line of information."""

    text: str


@dataclass(frozen=True)
class WarningMessage:
    """A warning that the user should act on."""

    text: str


@dataclass(frozen=True)
class StageStarted:
    """A stage starts, or resumes if `step` is above 0."""

    stage: str
    students: tuple[str, ...]
    num_epochs: int
    num_steps: int  # in the whole stage
    step: int


@dataclass(frozen=True)
class StepEnded:
    """An optimiser step is done."""

    stage: str
    step: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch is trained and evaluated; `record` is its line in metrics.jsonl."""

    record: EpochRecord


@dataclass(frozen=True)
class StageEnded:
    """A stage is done; `accuracy` is each student's best accuracy on val, as a fraction."""

    stage: str
    accuracy: Mapping[str, float]


Event = InfoMessage | WarningMessage | StageStarted | StepEnded | EpochEnded | StageEnded
Listener = Callable[[Event], None]

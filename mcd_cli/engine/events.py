"""What the engine tells whoever listens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mcd_cli.ladder.metrics import EpochRecord


@dataclass(frozen=True)
class InfoMessage:
    """A line worth knowing."""

    text: str


@dataclass(frozen=True)
class WarningMessage:
    """A line worth acting on."""

    text: str


@dataclass(frozen=True)
class StageStarted:
    """A stage begins (or goes on, where `step` is above 0)."""

    stage: str
    students: tuple[str, ...]
    num_epochs: int
    num_steps: int  # of the whole stage
    step: int


@dataclass(frozen=True)
class StepEnded:
    """One optimiser step was made."""

    stage: str
    step: int


@dataclass(frozen=True)
class EpochEnded:
    """An epoch was trained and evaluated; `record` is its line of metrics.jsonl."""

    record: EpochRecord


@dataclass(frozen=True)
class StageEnded:
    """A stage's students are finished: their best accuracy on V, as fractions."""

    stage: str
    accuracy: Mapping[str, float]


Event = InfoMessage | WarningMessage | StageStarted | StepEnded | EpochEnded | StageEnded
Listener = Callable[[Event], None]

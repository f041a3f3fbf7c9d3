"""metrics.jsonl: the records of a run, epoch by epoch, and warnings drawn from them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from mcd_cli.errors import UserError
from mcd_cli.ladder.documents import read
from mcd_cli.ladder.folder import METRICS

TEACHER, WARM_START = "teacher", "warm-start"  # stages that are not the method's own

ByLoss = dict[str, float]  # alpha, beta, gamma


@dataclass(frozen=True, kw_only=True)
class ImageRecord:
    """A training image with an extreme weight; `mislabelled`: whether noise changed its label, None without noise."""

    image: int  # sample id
    label: str
    beta: float
    mislabelled: bool | None = None


@dataclass(frozen=True, kw_only=True)
class ImagesRecord:
    """C-NET's weights for the training images, each image's averaged over the stage.

    spread: standard deviation over images. by_class: loss → class → mean. highest, lowest: by the weight of the
    teacher's loss (β). mislabelled: means over the images whose label noise changed ("yes") and the others ("no").
    """

    spread: ByLoss
    by_class: dict[str, dict[str, float]]
    highest: tuple[ImageRecord, ...]
    lowest: tuple[ImageRecord, ...]
    mislabelled: dict[str, ByLoss] | None = None


@dataclass(frozen=True, kw_only=True)
class StudentRecord:
    """A student's epoch: means over images. spread (standard deviation) and saturated: only with a C-NET.

    val_accuracy is that of the weights themselves, ema_val_accuracy that of their average, where there is one; the
    better of the two is the student's (the weights' own in a tie).
    """

    train_accuracy: float
    losses: ByLoss
    weights: ByLoss
    total_weight: float
    spread: ByLoss | None = None
    saturated: ByLoss | None = None  # share of C-NET's outputs within 2 % of 0 or 1
    val_accuracy: float
    ema_val_accuracy: float | None = None
    images: ImagesRecord | None = None  # at the stage's end


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line. preparation: the method's summary of its pass before training, only in a stage's first line.

    The keys of preparation are written next to the others and are not read again.
    """

    stage: str
    epoch: int
    step: int
    lr: float
    coordinator_updates: int = 0
    normalise: str | None = None  # of C-NET's weights
    students: dict[str, StudentRecord]
    preparation: Annotated[dict[str, Any], Field(exclude=True)] = field(default_factory=dict)

    @property
    def is_of_method(self) -> bool:
        """Whether the stage is the method's own: neither the teacher's nor the warm start."""
        return self.stage not in (TEACHER, WARM_START)

    def line(self) -> str:
        """The line of metrics.jsonl; fields that are None are left out."""
        return json.dumps(_RECORD.dump_python(self, exclude_none=True) | self.preparation) + "\n"


_RECORD = TypeAdapter(EpochRecord)


def read_metrics(folder: Path) -> list[EpochRecord]:
    """The records of a run's folder, of all its stages; empty if it has none.

    A last line that a crash has cut off is left out. Raises UserError for any other that is not a record.
    """
    path = folder / METRICS
    if not path.is_file():
        return []
    *lines, _ = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(read(_RECORD, line))
        except ValueError as error:
            raise UserError(f"{path}, line {number}: {error}; restore the file, or remove it") from None
    return records


def last_of_stage(records: Iterable[EpochRecord]) -> list[EpochRecord]:
    """Each stage's last epoch: students may train one after the other."""
    return list({record.stage: record for record in records}.values())


def leading(names: Sequence[str]) -> str:
    """The loss by which images are sorted: the teacher's, β; in a bank of other losses, the first after ce."""
    others = [name for name in names if name != "ce"]
    return "beta" if "beta" in names else (others or names)[0]


def degenerate(record: EpochRecord) -> Iterator[str]:
    """Warnings that C-NET acts as a learning rate: one line per student whose weights are alike and near a limit.

    Normalised weights have a fixed total, so they cannot act as a learning rate.
    """
    if record.normalise not in (None, "none"):
        return
    for name, student in record.students.items():
        if student.spread is None:
            continue
        mean = student.total_weight / len(student.weights)
        if max(student.spread.values()) < 0.02 and not 0.1 <= mean <= 0.9:
            yield (
                f"C-NET weighs every image alike for {name} (mean near {round(mean)}, spread under 0.02): "
                "it acts as a learning rate; try --set coordinator.normalise=image"
            )

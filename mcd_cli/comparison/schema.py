"""comparison.json: every figure of a comparison, unscaled (fractions, seconds), and how it was computed."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from mcd_cli.comparison.paper import PaperFigures
from mcd_cli.comparison.plan import DOCUMENT
from mcd_cli.comparison.statistics import Contrast
from mcd_cli.errors import UserError, reason_of
from mcd_cli.files import read_small, write_whole
from mcd_cli.ladder.documents import FINITE, Plain, read, without_defaults
from mcd_cli.ladder.schema import TeacherEntry

SCHEMA = 1  # fields that came later have defaults
MAX_BYTES = 2**28


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A figure over seeds; std: its standard deviation, None for one seed."""

    mean: float
    std: float | None
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        numbers = tuple(float(value) for value in values)
        std = statistics.stdev(numbers) if len(numbers) > 1 else None
        return cls(mean=statistics.fmean(numbers), std=std, values=numbers)


@dataclass(frozen=True, kw_only=True)
class DatasetSummary:
    """What all cells were trained on."""

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]  # 3, H, W
    split_seed: int
    fingerprint: str
    sizes: dict[str, int]  # images in train, val and test
    label_noise: float


@dataclass(frozen=True, kw_only=True)
class StudentCost:
    """A student of any contender."""

    name: str
    arch: str
    macs: int
    params: int


@dataclass(frozen=True, kw_only=True)
class StatisticsUsed:
    """How the intervals and the p-values were computed."""

    level: float
    resamples: int
    correction: str


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """The member of a group that was chosen; val: every member's accuracy on val."""

    chosen: str
    val: dict[str, float]


@dataclass(frozen=True, kw_only=True)
class StudentResult:
    """A student of one contender: test accuracy at the last epoch and at its best on val.

    probabilities: at its best on val, on test: `nll` (nats) and `ece` (a fraction) at the temperature that was fitted
    on val, `raw_nll` and `raw_ece` without. Empty where a cell has no temperature.
    """

    last: Spread
    best_on_val: Spread
    total_weight: float
    vs_kd: Contrast | None
    probabilities: dict[str, Spread] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ContenderResult:
    """A row of the tables. mean: test accuracy at the last epoch, averaged over students."""

    name: str
    same_as: str | None  # the contender that it equals by definition
    cells: tuple[str, ...]
    recipes: tuple[str, ...]  # sha256
    mean: Spread
    total_weight: float
    updates: int  # of each C-NET; the smallest number if they differ
    seconds: Spread | None  # of the method's own stages
    borrowed: tuple[str, ...]  # students reused from kd
    test_minus_val: float | None  # None if val was trained on
    method: str
    cohort: bool  # mc-distil on the base recipe, with these or other students
    vs_kd: Contrast | None
    vs_ce: Contrast | None
    students: dict[str, StudentResult]


@dataclass(frozen=True)
class _Pair:
    a: str
    b: str


@dataclass(frozen=True)
class Control(Contrast, _Pair):
    """The contrast of a pair: a minus b."""


@dataclass(frozen=True, kw_only=True)
class ClaimResult:
    """Whether the subject beats every one of `against`, with none missing."""

    claimed: bool
    against: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The conclusions about a variant of mc-distil. parts: of its gain over kd, each the contrast of a pair."""

    subject: str
    parts: dict[str, tuple[str, str] | None]
    claims: dict[str, ClaimResult]
    lines: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Document:
    """The whole comparison; students by falling MACs, contenders in the requested order."""

    __pydantic_config__: ClassVar[ConfigDict] = FINITE

    schema: int = SCHEMA
    version: str
    created: str  # ISO 8601
    endpoint: str
    dataset: DatasetSummary
    teacher: TeacherEntry | None
    seeds: tuple[int, ...]
    recipe: Plain  # the base recipe
    hardware: tuple[Plain, ...]  # every kind that a cell ran on
    students: tuple[StudentCost, ...]
    warm_start: dict[str, Spread]  # each student's test accuracy before any method
    statistics: StatisticsUsed
    tuned: dict[str, Tuning]
    contenders: tuple[ContenderResult, ...]
    controls: tuple[Control, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    paper: PaperFigures | None = None

    def content(self) -> dict[str, Any]:
        """What is stored, as plain values."""
        content: dict[str, Any] = _DOCUMENT.dump_python(self, mode="json")
        for contender in content["contenders"]:
            students = contender["students"].items()
            contender["students"] = {name: without_defaults(s, {"probabilities": {}}) for name, s in students}
        return content

    def save(self, folder: Path) -> None:
        """Write comparison.json, whole or not at all. Raises RunFailed if that fails."""
        write_whole(folder / DOCUMENT, json.dumps(self.content(), indent=2, allow_nan=False).encode())

    @classmethod
    def load(cls, folder: Path) -> Document:
        """The document of a finished comparison's folder. Raises UserError if it is missing or damaged."""
        try:
            return read(_DOCUMENT, read_small(folder / DOCUMENT, MAX_BYTES))
        except (OSError, ValueError) as error:
            raise UserError(f"{folder} contains no finished comparison ({DOCUMENT}: {reason_of(error)})") from None


_DOCUMENT = TypeAdapter(Document)

"""The parts of a manifest: data set, teacher, students. Each checks what its types cannot say."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mcd_cli.errors import UserError
from mcd_cli.ladder.documents import Plain

if TYPE_CHECKING:
    from torch import nn

_NAME = re.compile(r"[a-z0-9_-]+")
_ARCH = re.compile(r"[A-Za-z0-9_.:@-]+")
_SHA256 = re.compile(r"[0-9a-f]{64}")
LARGEST = 10**18  # for a count; anything larger is an error in the file
MAX_CLASSES = 1_000_000
MAX_SIDE = 2**14  # pixels
MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-3, 1e3


def check(right: bool, what: str) -> None:
    """Raises ValueError(what) unless right."""
    if not right:
        raise ValueError(what)


def is_temperature(value: float) -> bool:
    """Whether it is a number that a fit can have found."""
    return MIN_TEMPERATURE <= value <= MAX_TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class DatasetEntry:
    """What the students were trained on; mean and std are of RGB in [0, 1]."""

    name: str
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]  # 3, H, W
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    split_seed: int
    fingerprint: str
    sizes: dict[str, int] = field(default_factory=dict)  # images in train, val and test

    def __post_init__(self) -> None:
        check(len(self.classes) > 0, "has no classes")
        check(len(self.classes) <= MAX_CLASSES, f"has more than {MAX_CLASSES:,} classes")
        check(self.input_shape[0] == 3, "input_shape must be of 3 channels")
        check(min(self.input_shape) > 0, "input_shape must be above 0")
        check(max(self.input_shape) <= MAX_SIDE, f"input_shape must be at most {MAX_SIDE}")
        check(all(0 <= size <= LARGEST for size in self.sizes.values()), "sizes must be numbers of images")
        check(min(self.std) > 0, "std must be above 0")


@dataclass(frozen=True, kw_only=True)
class TeacherAccuracy:
    """Fractions of val and of the test set."""

    val: float
    test: float

    def __post_init__(self) -> None:
        check(all(0 <= value <= 1 for value in (self.val, self.test)), "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class TeacherEntry:
    """The frozen teacher; `saw_val`: whether it was trained on images of val, None if unknown."""

    arch: str
    sha256: str
    norm: str
    accuracy: TeacherAccuracy
    saw_val: bool | None = None

    def __post_init__(self) -> None:
        check(_SHA256.fullmatch(self.sha256) is not None, "sha256 must be 64 hexadecimal digits")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Fractions. val: on val at the chosen checkpoint; ce (warm start), last and test: on the test set."""

    ce: float | None
    last: float
    val: float
    test: float
    gain_p: float | None = None  # of test against ce: exact McNemar, two-sided

    def __post_init__(self) -> None:
        values = (self.ce or 0.0, self.last, self.val, self.test)
        check(all(0 <= value <= 1 for value in values), "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Score:
    """How good probabilities are: `nll`, the mean −log p of the label in nats; `ece`, a fraction.

    ece: expected calibration error, the mean distance of confidence from accuracy over 15 bins.
    """

    nll: float
    ece: float

    def __post_init__(self) -> None:
        check(self.nll >= 0, "nll must not be below 0")
        check(0 <= self.ece <= 1, "ece must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """The temperature T, fitted on val, and the scores of softmax(z) (`raw`) and of softmax(z / T) (`scaled`).

    raw, scaled: by split; "val" always, "test" where it was read (once, at the end of the run).
    """

    temperature: float
    raw: dict[str, Score]
    scaled: dict[str, Score]

    def __post_init__(self) -> None:
        within = f"temperature must lie in [{MIN_TEMPERATURE:g}, {MAX_TEMPERATURE:g}]"
        check(is_temperature(self.temperature), within)
        check("val" in self.raw and "val" in self.scaled, "raw and scaled must have the scores on val")


@dataclass(frozen=True, kw_only=True)
class ExportEntry:
    """What was found when a file of `exports` was written: its sha256 and bytes, and its gate's figures.

    val: the file's accuracy on val, a fraction of the `num_val` images that it was judged on. calibrated: whether the
    file divides its logits by the student's temperature.
    """

    sha256: str
    bytes: int
    val: float
    num_val: int
    gate: Plain = field(default_factory=dict)
    calibrated: bool = False

    def __post_init__(self) -> None:
        check(_SHA256.fullmatch(self.sha256) is not None, "sha256 must be 64 hexadecimal digits")
        check(self.bytes > 0 and self.num_val > 0, "bytes and num_val must be above 0")
        check(0 <= self.val <= 1, "val must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Milliseconds of one call of onnxruntime on a batch: percentiles of `runs` calls after `warmup` others."""

    format: str  # as in `exports`
    batch: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    warmup: int
    runs: int

    def __post_init__(self) -> None:
        check(0 < self.p50_ms <= self.p90_ms <= self.p99_ms, "p50_ms, p90_ms, p99_ms must rise and lie above 0")
        check(self.p99_ms <= LARGEST, f"milliseconds must be at most {LARGEST}")
        check(0 < self.batch <= LARGEST, "batch must be above 0, and a number of images")


@dataclass(frozen=True, kw_only=True)
class StudentEntry:
    """One student: where its weights lie (relative to the run's folder) and what it costs.

    sha256: of the weights file. macs: multiply-adds of one image. bytes: of that file, float32. exports: format
    -> relative path; exported: format -> what was found then. latency: hardware -> what was measured there.
    calibration: None where an older mcd finished the run, or val was trained on.
    """

    name: str
    arch: str
    weights: str
    sha256: str
    params: int
    macs: int
    bytes: int
    accuracy: Accuracy
    latency: dict[str, tuple[Timing, ...]] = field(default_factory=dict)
    exports: dict[str, str] = field(default_factory=dict)
    exported: dict[str, ExportEntry] = field(default_factory=dict)
    calibration: Calibration | None = None
    home: Annotated[tuple[Path, DatasetEntry] | None, Field(exclude=True)] = field(
        default=None, init=False, repr=False, compare=False
    )  # set by `at` alone, neither stored nor read

    def __post_init__(self) -> None:
        check(_NAME.fullmatch(self.name) is not None, "name must be of a-z, 0-9, _ and -")
        check(_ARCH.fullmatch(self.arch) is not None, "arch is not a valid architecture name")
        check(_SHA256.fullmatch(self.sha256) is not None, "sha256 must be 64 hexadecimal digits")
        costs = (self.params, self.macs, self.bytes)
        check(min(costs) > 0, "params, macs and bytes must be above 0")
        check(max(costs) <= LARGEST, f"params, macs and bytes must be at most {LARGEST}")
        for path in (self.weights, *self.exports.values()):
            parts = PurePosixPath(path).parts
            safe = parts and not path.startswith("/") and ".." not in parts
            check(bool(safe) and not set(path) & set("\\:\0"), f"the path {path!r} leaves the run's folder")

    def at(self, folder: Path, dataset: DatasetEntry) -> StudentEntry:
        """The same student, in the folder where its files lie."""
        student = copy.copy(self)
        object.__setattr__(student, "home", (folder, dataset))
        return student

    def load(self) -> nn.Module:
        """The student in eval mode: RGB float32 images [n, 3, H, W] in [0, 1] → raw logits [n, C].

        Raises UserError when the weights are missing or are not those of the manifest.
        """
        assert self.home is not None, "a student is loaded from a ladder that lies in a folder"
        from mcd_cli.models.student_file import load_student

        folder, dataset = self.home
        return load_student(
            inside(folder, self.weights),
            sha256=self.sha256,
            arch=self.arch,
            num_classes=len(dataset.classes),
            mean=dataset.mean,
            std=dataset.std,
        )


def inside(folder: Path, path: str) -> Path:
    """The file that a manifest's path names; it may not leave the folder, by a link either."""
    try:
        target = (folder / path).resolve()
        stays = target.is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        stays = False
    if not stays:
        raise UserError(f"{folder}: the path {path!r} leaves the run's folder; it is not followed")
    return target

"""The manifest of a run, `ladder.json`: load, save, choose. No torch until weights are loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Unpack

from pydantic import ConfigDict, Field, TypeAdapter
from pydantic_core import from_json

from mcd_cli.errors import UserError, unknown
from mcd_cli.files import as_path, read_small, write_whole
from mcd_cli.ladder.budget import Budget, Choice, Limits, choose
from mcd_cli.ladder.documents import FINITE, Plain, read, without_defaults
from mcd_cli.ladder.folder import MANIFEST, PREDICTIONS
from mcd_cli.ladder.latency import hardware_key, measure, recorded
from mcd_cli.ladder.paired import correct_on_val
from mcd_cli.ladder.schema import (
    DatasetEntry,
    StudentEntry,
    TeacherEntry,
    Timing,
    check,
    inside,
)
from mcd_cli.ladder.variants import FLOAT32, INT8, OTHERS, Variant, variants

if TYPE_CHECKING:
    from torch import nn

    from mcd_cli.ladder.session import Session

SCHEMA = 1  # fields that came later have defaults, so manifests of every version 0 of mcd can be read
ADDED = {"calibration": None, "calibrated": False}  # of students and exports; left out at these defaults
MAX_BYTES = 2**25  # in the manifest


@dataclass(frozen=True, kw_only=True)
class Ladder:
    """A finished run. Students are ordered by falling MACs."""

    __pydantic_config__: ClassVar[ConfigDict] = FINITE

    schema: int = SCHEMA
    version: str
    created: str  # ISO 8601; UTC if it names no zone
    dataset: DatasetEntry
    teacher: TeacherEntry | None
    method: str
    recipe_sha256: str
    seed: int
    device: str
    hardware: Plain = field(default_factory=dict)  # the device's model, precision, threads, versions
    students: tuple[StudentEntry, ...]
    folder: Annotated[Path | None, Field(exclude=True)] = field(
        default=None, init=False, repr=False, compare=False
    )  # set only by `at`, neither stored nor read

    def __post_init__(self) -> None:
        names = [student.name for student in self.students]
        check(bool(names), "has no students")
        check(len(set(names)) == len(names), "two students have the same name")
        _created(self.created)
        students = sorted(self.students, key=lambda student: -student.macs)
        object.__setattr__(self, "students", tuple(students))

    def at(self, folder: Path) -> Ladder:
        """The same ladder, with the folder that contains its files."""
        ladder = replace(self, students=tuple(student.at(folder, self.dataset) for student in self.students))
        object.__setattr__(ladder, "folder", folder)
        return ladder

    @property
    def moment(self) -> datetime:
        """`created` as a moment in time."""
        return _created(self.created)

    def document(self) -> dict[str, Any]:
        """What is stored, as plain values."""
        document: dict[str, Any] = _LADDER.dump_python(self, mode="json")
        for student in document["students"]:
            exported = student["exported"].items()
            student["exported"] = {format: without_defaults(entry, ADDED) for format, entry in exported}
        return document | {"students": [without_defaults(student, ADDED) for student in document["students"]]}

    def save(self, folder: str | Path) -> None:
        """Write `ladder.json`, whole or not at all; equal ladders give equal bytes. Raises RunFailed if that fails."""
        content = json.dumps(self.document(), indent=2, ensure_ascii=False, allow_nan=False)
        write_whole(Path(folder) / MANIFEST, content.encode() + b"\n")

    def student(self, name: str) -> StudentEntry:
        """The student of that name; raises UserError with the nearest names."""
        for student in self.students:
            if student.name == name:
                return student
        raise unknown("student", name, [student.name for student in self.students])

    def variant(self, name: str) -> Variant:
        """`NAME`, `NAME.int8` or `NAME.FORMAT`. Raises UserError for an unknown student; its file may be missing."""
        student, dot, format = name.partition(".")
        if format not in ("", INT8, *OTHERS) or (dot and not format):
            raise UserError(f"{name!r} is not a variant of a student; write {student} or {student}.{INT8}")
        return Variant(self.student(student), format or FLOAT32)

    def load(self, name: str) -> nn.Module:
        """That student's network; see StudentEntry.load."""
        return self.student(name).load()

    def session(self, name: str, threads: int = 1, *, calibrated: bool = True) -> Session:
        """The exported student (or its int8 variant: `NAME.int8`) in onnxruntime; see Variant.session."""
        return self.variant(name).session(threads, calibrated=calibrated)

    def explain(self, budget: Budget, *, int8: bool = True, threads: int = 1, format: str | None = None) -> Choice:
        """The choice that `select` makes, with its reasons; format: among the files of this format only.

        A latency is read from the ladder if it was measured on this hardware, else measured now. `within` leaves int8
        out, because its predictions are not stored. Raises UserError if a latency needs a student that is not
        exported, and for `within` in a run without predictions.
        """
        choices = self._candidates(int8 and budget.within is None, format)
        if budget.needs_latency or any(student.latency for student in self.students):
            here = hardware_key(threads)
            choices = [_timed(variant, budget, here, threads) for variant in choices]
        correct = (
            {} if self.folder is None else correct_on_val(self.folder, [student.name for student in self.students])
        )
        if budget.within is not None and not correct:
            raise UserError(
                f"--within needs the predictions on val, and {self.folder} has no {PREDICTIONS}; "
                "give --min-accuracy, or train the run again"
            )
        return choose([replace(v, correct=correct.get(v.predicts_as)) for v in choices], budget)

    def _candidates(self, int8: bool, format: str | None) -> list[Variant]:
        """What `explain` chooses among. Raises UserError if a student is not exported in the format."""
        if format is None:
            every = (variant for student in self.students for variant in variants(student))
            return [variant for variant in every if int8 or variant.format == FLOAT32]
        choices = [Variant(student, format) for student in self.students]
        for variant in choices:
            variant.deployed()
        return choices

    def select(self, **limits: Unpack[Limits]) -> StudentEntry:
        """The float32 student with the highest accuracy on val within the limits: "16M", "400KB", "2ms", "72%".

        With `min_accuracy` or `within` ("1se": at most one standard error behind the best), the cheapest that is
        accurate enough; `by`: macs, params, size or latency.

        int8 is left out, because it has no weights to load: use `explain` to choose it and `session` to open it.
        Raises NothingFits, naming the nearest miss, and UserError for a limit that is not a quantity or cannot be
        measured yet.

        >>> load_ladder("runs/numbers-mc-distil-1").select(min_accuracy="95%", by="size").name
        'resnet10-xxs'
        """
        budget = Budget.parse(**limits)
        return self.explain(budget, int8=False).demand().student


_LADDER = TypeAdapter(Ladder)


def _timed(variant: Variant, budget: Budget, here: str, threads: int) -> Variant:
    """The variant with its latency at the budget's percentile; measured now only if the budget needs it."""
    timing = recorded(variant.student, variant.format, 1, here)
    if timing is None and budget.needs_latency:
        timing = _measured(variant, threads)
    return variant if timing is None else replace(variant, latency_ms=getattr(timing, f"{budget.percentile}_ms"))


def _measured(variant: Variant, threads: int) -> Timing:
    if variant.format in OTHERS:
        raise UserError(f"{variant.name} was not timed on this machine; export it here: --format {variant.format}")
    return measure({variant.format: variant.deployed()}, threads=threads)[variant.format]


def update(folder: Path, change: Callable[[StudentEntry], StudentEntry]) -> Ladder:
    """Read the manifest again, change its students, and write it; keeps what other processes wrote in the meantime."""
    ladder = load_ladder(folder)
    ladder = replace(ladder, students=tuple(change(student) for student in ladder.students))
    ladder.save(folder)
    return ladder.at(folder)


def load_ladder(folder: str | Path) -> Ladder:
    """The ladder of a finished run's folder. Raises UserError if the manifest is missing or wrong."""
    folder = as_path(str(folder))
    content, document = _read(folder)
    schema = document.get("schema")
    if type(schema) is not int or schema < 1:
        raise UserError(f"{folder / MANIFEST} has no schema version, so it is not a manifest of mcd")
    if schema > SCHEMA:
        raise UserError(
            f"{folder / MANIFEST} was written by a newer mcd (schema {schema}; this one reads {SCHEMA}): upgrade mcd"
        )
    try:
        ladder = read(_LADDER, content).at(folder)
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST}: {error}") from None
    for student in ladder.students:
        for path in (student.weights, *student.exports.values()):
            inside(folder, path)
    return ladder


def find_run(run: str | Path | None = None, *, under: str | Path = "runs") -> Path:
    """The folder of a finished run: the one given, or the newest under `under` by `created` in its manifest.

    Raises UserError if there is none.
    """
    if run is not None:
        folder = as_path(str(run))
        if not folder.is_dir():
            raise UserError(f"the run folder {folder} does not exist")
        if not (folder / MANIFEST).exists():
            raise UserError(
                f"{folder} is not a finished run (it has no {MANIFEST}); finish it with `mcd distill --resume DIR`"
            )
        return folder
    finished = sorted(manifest.parent for manifest in Path(under).glob(f"*/{MANIFEST}"))
    if not finished:
        raise UserError(
            f"no finished run under {Path(under).resolve()}; train one: `mcd distill`; or name one: --run DIR"
        )
    return max(finished, key=_age)


def _age(folder: Path) -> tuple[datetime, str]:
    created = _read(folder)[1].get("created")
    try:
        return _created(created), folder.name
    except ValueError as error:
        raise UserError(f"{folder / MANIFEST}: {error}; repair or move it, or name a run: --run DIR") from None


def _created(text: Any) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        raise ValueError(f"created is not an ISO 8601 time: {text!r}") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read(folder: Path) -> tuple[bytes, dict[str, Any]]:
    """The manifest's bytes and the JSON object in them, whose keys are not checked yet."""
    path = folder / MANIFEST
    if not path.exists():
        find_run(folder)  # raises UserError with the reason
    try:
        content = read_small(path, MAX_BYTES)
        document = from_json(content, allow_inf_nan=False)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); restore it, or train the run again") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} is not a manifest: it contains no JSON object")
    return content, document

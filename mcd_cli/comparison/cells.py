"""Cells: one run per contender and seed. Trains each of them once and reads its results."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mcd_cli.comparison.plan import Cell, differing, first_link_identity
from mcd_cli.comparison.shared import Engine, Shared, open_run
from mcd_cli.engine.checkpoint import Checkpoints
from mcd_cli.engine.events import EpochEnded, Event, Listener, StageStarted
from mcd_cli.engine.results import Result
from mcd_cli.engine.run import Run
from mcd_cli.errors import UserError
from mcd_cli.files import write_whole
from mcd_cli.ladder.folder import CHECKPOINT, MANIFEST, PREDICTIONS, RECIPE
from mcd_cli.ladder.manifest import Ladder, load_ladder
from mcd_cli.ladder.metrics import WARM_START, read_metrics
from mcd_cli.methods.base import TEACHER
from mcd_cli.recipe.loading import load_recipe
from mcd_cli.recipe.schema import Recipe

CELLS = "cells"
SECONDS = "seconds.jsonl"
BORROWED = "borrowed.json"

Right = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Trained:
    """A finished cell. last, chosen: per student, the test images it gets right at its last and at its best epoch."""

    cell: Cell
    ladder: Ladder
    last: Mapping[str, Right]
    chosen: Mapping[str, Right]
    labels: npt.NDArray[np.int64]
    total_weight: Mapping[str, float]  # mean over the training
    updates: int  # of each C-NET; 0 without one
    seconds: float | None  # of the method's own stages; None if not measured
    borrowed: tuple[str, ...]  # students whose results were reused from kd's cell


class EpochTimer:
    """Forwards events and records how long each epoch took, in the run's folder, so that interruptions lose nothing."""

    def __init__(self, emit: Listener, path: Path) -> None:
        self.emit = emit
        self.path = path
        self.stage = ""
        self.since = time.perf_counter()

    def __call__(self, event: Event) -> None:
        self.emit(event)
        if isinstance(event, StageStarted):
            self.stage, self.since = event.stage, time.perf_counter()
        elif isinstance(event, EpochEnded):
            self.stop()

    def stop(self) -> None:
        """Record the time since the stage or its last epoch began."""
        if self.stage:
            now = time.perf_counter()
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"stage": self.stage, "seconds": now - self.since}) + "\n")
            self.since = now


def owners(cells: Sequence[Cell]) -> dict[tuple[str, int], Cell]:
    """(contender, seed) → the cell that is trained for it: the first of those that are equal by definition."""
    first: dict[tuple[str, int], Cell] = {}
    for cell in cells:
        first.setdefault((cell.identity, cell.seed), cell)
    return {(cell.contender, cell.seed): first[cell.identity, cell.seed] for cell in cells}


def is_finished_cell(folder: Path, cell: Cell) -> bool:
    return (folder / CELLS / cell.name / MANIFEST).is_file()


def train_cell(cell: Cell, cells: Sequence[Cell], folder: Path, shared: Shared, engine: Engine) -> None:
    """Train the cell's run from its last state to its manifest; stages that other cells have trained are reused."""
    path = folder / CELLS / cell.name
    recipe = shared.recipe(cell.recipe)
    start = shared.warm_starts(recipe)
    with open_run(path, recipe) as run_folder:
        run = engine(recipe, run_folder)
        given = {} if start is None else {WARM_START: start}
        for stage, student, source in first_link(run, cell, cells, folder):
            result = _distilled(folder / CELLS / source.name / CHECKPOINT)
            given[stage] = Result({student: result.best[student]}, {student: result.last[student]})
            write_whole(path / BORROWED, json.dumps({student: source.name}).encode())
        timer = EpochTimer(run.emit, path / SECONDS)
        run.emit = timer
        try:
            run.train(given)
        except BaseException:
            timer.stop()
            raise


def is_first_link(source: Cell, cell: Cell) -> bool:
    """Whether the largest student of `source` (kd's cell) is, by definition, the first one of the chain `cell`."""
    return source.seed == cell.seed and source.identity == first_link_identity(cell.recipe)


def first_link(run: Run, cell: Cell, cells: Sequence[Cell], folder: Path) -> Iterator[tuple[str, str, Cell]]:
    """(stage, student, kd's cell) if the chain's first student is, by definition, one that kd's cell has trained."""
    own = next(plan for plan in run.plans if plan.name not in (TEACHER, WARM_START))
    if len(own.stage.students) != 1 or own.stage.teachers != (TEACHER,):
        return
    for source in cells:
        checkpoint = folder / CELLS / source.name / CHECKPOINT
        if is_first_link(source, cell) and is_finished_cell(folder, source):
            if any(checkpoint.glob("distill-*.safetensors")):
                yield own.name, own.stage.students[0], source
            return


def _distilled(checkpoint: Path) -> Result:
    (file,) = checkpoint.glob("distill-*.safetensors")
    return Result.of(Checkpoints(checkpoint).load_stage(file.name))


def refuse_other_recipe(path: Path, recipe: Recipe) -> None:
    """Raises UserError if the cell's folder holds a run of another recipe."""
    if not (path / RECIPE).is_file():
        return
    there = load_recipe(str(path / RECIPE), {})
    if there.sha256() != recipe.sha256():
        keys = ", ".join([key for key in differing(there, recipe) if key != "teacher.file"][:3])
        raise UserError(f"{path} was made with a different recipe ({keys}); choose another --out, or move it away")


def read_cell(folder: Path, cell: Cell, recipe: Recipe) -> Trained:
    """Read from a finished cell what the statistics need. Raises UserError if it has another recipe or is damaged."""
    path = folder / CELLS / cell.name
    refuse_other_recipe(path, recipe)
    ladder = load_ladder(path)
    if ladder.recipe_sha256 != recipe.sha256() or ladder.seed != recipe.seed:
        raise UserError(
            f"{path} was made with a different recipe than its {RECIPE}; choose another --out, or move it away"
        )
    try:
        predicted = load_file(path / PREDICTIONS)
        labels = predicted["test"]
        last = {name: predicted[f"test/last/{name}"] == labels for name in recipe.students}
        chosen = {name: predicted[f"test/best/{name}"] == labels for name in recipe.students}
    except (OSError, SafetensorError, KeyError) as error:
        raise UserError(f"{path / PREDICTIONS} cannot be read ({error}); move {path} away and run again") from None
    borrowed = json.loads((path / BORROWED).read_text()) if (path / BORROWED).is_file() else {}
    weights, updates = _weights(path)
    for student, source in borrowed.items():
        there, _ = _weights(folder / CELLS / source)
        if student not in there:
            raise UserError(
                f"{path} reuses {student} from {source}, which no longer exists; move {path} away and run again"
            )
        weights[student] = there[student]
    return Trained(cell, ladder, last, chosen, labels, weights, updates, _seconds(path), tuple(borrowed))


def refuse_mixture(cells: Sequence[Trained]) -> None:
    """Raises UserError unless all cells used the same splits, the same test images and the same teacher."""
    first = cells[0]
    for other in cells[1:]:
        for what, here, there in (
            ("data", first.ladder.dataset.fingerprint, other.ladder.dataset.fingerprint),
            ("split seed", first.ladder.dataset.split_seed, other.ladder.dataset.split_seed),
            ("test images", first.labels.tolist(), other.labels.tolist()),
            ("teacher", _teacher(first), _teacher(other)),
        ):
            if here != there:
                raise UserError(
                    f"{first.cell.name} and {other.cell.name} differ in their {what}, so they cannot be averaged; "
                    "move one away and run again"
                )


def _teacher(cell: Trained) -> str | None:
    return cell.ladder.teacher.sha256 if cell.ladder.teacher is not None else None


def _weights(path: Path) -> tuple[dict[str, float], int]:
    """Each student's total loss weight, averaged over the method's epochs, and the updates of each C-NET."""
    totals: dict[str, list[float]] = {}
    updates: dict[str, int] = {}
    for record in (record for record in read_metrics(path) if record.is_of_method):
        updates[record.stage] = record.coordinator_updates
        for name, student in record.students.items():
            totals.setdefault(name, []).append(student.total_weight)
    return {name: sum(values) / len(values) for name, values in totals.items()}, min(updates.values(), default=0)


def _seconds(path: Path) -> float | None:
    if not (path / SECONDS).is_file():
        return None
    lines = map(json.loads, (path / SECONDS).read_text(encoding="utf-8").splitlines())
    seconds = [float(line["seconds"]) for line in lines if line["stage"] not in (TEACHER, WARM_START)]
    return sum(seconds) if seconds else None

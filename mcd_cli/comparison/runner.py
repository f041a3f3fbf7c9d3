"""Runs a comparison: estimates its cost, trains the cells one after another, and writes the document."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mcd_cli.comparison.cells import (
    CELLS,
    is_finished,
    owners,
    read_cell,
    refuse_mixture,
    refuse_other_recipe,
    train_cell,
)
from mcd_cli.comparison.document import describe
from mcd_cli.comparison.figures import draw
from mcd_cli.comparison.paper import PaperFigures
from mcd_cli.comparison.plan import MARKDOWN, Cell, Plan
from mcd_cli.comparison.schema import Document
from mcd_cli.comparison.shared import Engine, Shared
from mcd_cli.comparison.tables import markdown
from mcd_cli.engine.events import Event, InfoMessage, Listener, WarningMessage
from mcd_cli.engine.run import Run
from mcd_cli.engine.stages import StagePlan
from mcd_cli.files import write_whole
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.metrics import WARM_START
from mcd_cli.methods.base import TEACHER


@dataclass(frozen=True)
class Cost:
    """seconds: of each contender's own stages on one seed; updates: of each of its C-NETs (0 without one)."""

    total_seconds: float
    seconds: Mapping[str, float]
    updates: Mapping[str, int]


class Comparison:
    """The plan, its folder, and the engine that trains its cells."""

    def __init__(self, plan: Plan, folder: Path, engine: Engine, emit: Listener) -> None:
        self.plan = plan
        self.folder = folder
        self.engine = engine
        self.emit = emit
        self.shared = Shared(folder, plan.base, engine)
        self.cells = plan.cells()
        self.owner = owners(self.cells)

    @property
    def to_train(self) -> list[Cell]:
        """The unfinished cells, without those that equal another cell by definition."""
        wanted = [cell for cell in self.cells if self.owner[cell.contender, cell.seed] is cell]
        return [cell for cell in wanted if not is_finished(self.folder, cell)]

    def estimate(self) -> Cost:
        """Estimate the cost from a few steps of each contender; also checks that its networks take the images."""
        todo = self.to_train
        seconds: dict[str, float] = {}
        updates: dict[str, int] = {}
        shared: dict[str, float] = {}
        checked: list[Mapping[str, str]] = []
        for cell in todo:
            if cell.contender in seconds:
                continue
            recipe = self.shared.recipe(cell.recipe)
            with tempfile.TemporaryDirectory() as place, RunFolder.create(f"{place}/run", recipe) as folder:
                run = self.engine(recipe, folder)
                if checked:
                    run.emit = _only_warnings(run.emit)
                if recipe.students not in checked:
                    run.check()
                    checked.append(recipe.students)
                by_stage = run.seconds_by_stage()
                updates[cell.contender] = planned_updates(run)
            for name in (TEACHER, WARM_START):
                shared[name] = max(shared.get(name, 0.0), by_stage.pop(name, 0.0))
            seconds[cell.contender] = sum(by_stage.values())
        if self.shared.teacher_file.is_file():
            shared[TEACHER] = 0.0
        num_seeds = len({cell.seed for cell in todo})
        total = shared.get(TEACHER, 0.0) + num_seeds * shared.get(WARM_START, 0.0)
        return Cost(total + sum(seconds[cell.contender] for cell in todo), seconds, updates)

    def train(self) -> None:
        """Train the teacher, then every unfinished cell, each from its last state.

        Raises UserError, before training, if a cell's folder holds a run of another recipe.
        """
        todo = self.to_train
        if todo:
            self.shared.train_teacher()
        for cell in self.owner.values():
            refuse_other_recipe(self.folder / CELLS / cell.name, self.shared.recipe(cell.recipe))
        for number, cell in enumerate(todo, start=1):
            self.emit(InfoMessage(f"cell {number} of {len(todo)}: {cell.contender}, seed {cell.seed}"))
            train_cell(cell, self.cells, self.folder, self.shared, self.engine)

    def document(self, beside: list[Path], paper: PaperFigures | None) -> Document:
        """Write comparison.json, comparison.md and the figures. Raises UserError if the cells are not comparable."""
        mine = {cell.name: cell for cell in self.owner.values()}
        read = {name: read_cell(self.folder, cell, self.shared.recipe(cell.recipe)) for name, cell in mine.items()}
        refuse_mixture(list(read.values()))
        trained = {place: read[cell.name] for place, cell in self.owner.items()}
        document = describe(self.plan, trained, paper)
        others = [Document.load(path) for path in beside]
        document.save(self.folder)
        pictures = draw([document, *others], self.folder)
        write_whole(self.folder / MARKDOWN, markdown(document, pictures).encode())
        return document


def planned_updates(run: Run) -> int:
    """How often each C-NET of this run will be updated; the smallest number if they differ."""
    section = run.recipe.coordinator
    steps = run.loader.num_steps

    def of(plan: StagePlan) -> int:
        if section.unit == "step":
            return -(-plan.epochs * steps // section.every)
        return -(-plan.epochs // section.every) * steps

    learned = [plan for plan in run.plans if plan.learned and section.control != "frozen"]
    return min((of(plan) for plan in learned), default=0)


def _only_warnings(emit: Listener) -> Listener:
    def listen(event: Event) -> None:
        if isinstance(event, WarningMessage):
            emit(event)

    return listen

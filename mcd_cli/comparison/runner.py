"""Runs a comparison: estimates its cost, trains its graph of runs, and writes the document."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mcd_cli.comparison.cells import (
    CELLS,
    is_finished_cell,
    is_first_link,
    owners,
    read_cell,
    refuse_mixture,
    refuse_other_recipe,
    train_cell,
)
from mcd_cli.comparison.document import describe
from mcd_cli.comparison.figures import draw
from mcd_cli.comparison.graph import Graph, Node, Task
from mcd_cli.comparison.paper import PaperFigures
from mcd_cli.comparison.plan import MARKDOWN, Cell, Plan
from mcd_cli.comparison.schema import Document
from mcd_cli.comparison.shared import SHARED, Engine, Shared, warm_start_groups, warm_start_node
from mcd_cli.comparison.tables import markdown
from mcd_cli.engine.events import Event, Listener, WarningMessage
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
        return [cell for cell in wanted if not is_finished_cell(self.folder, cell)]

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

    def nodes(self, part: str = "") -> list[Node]:
        """The teacher if it has to be trained, the warm starts, and the cells. part: a prefix of their names."""
        shared, nodes = self.shared, []
        prefix = f"{part}/" if part else ""

        def add(name: str, title: str, needs: Iterable[str], is_finished: Callable[[], bool], run: Task) -> None:
            needs = tuple(prefix + need for need in needs)
            nodes.append(
                Node(prefix + name, f"{part}: {title}" if part else title, self.folder, needs, is_finished, run)
            )

        teacher = (TEACHER,) if shared.needs_teacher else ()
        if teacher:
            add(TEACHER, TEACHER, (), shared.teacher_file.is_file, shared.train_teacher)
        cells = list({cell.name: cell for cell in self.owner.values()}.values())
        groups = warm_start_groups(cells)
        for cell in cells:
            warm_start = [warm_start_node(cell.recipe)] if cell.recipe.warm_start.epochs else []
            for name in warm_start:
                if name in groups:
                    recipe = groups.pop(name)
                    is_finished, run = (
                        partial(shared.has_warm_starts, recipe),
                        partial(shared.train_warm_starts, recipe),
                    )
                    add(name, f"warm start, seed {cell.seed}", teacher, is_finished, run)
            links = [source.name for source in cells if is_first_link(source, cell)]
            is_finished, run = partial(is_finished_cell, self.folder, cell), partial(self._train_cell, cell)
            add(cell.name, f"{cell.contender}, seed {cell.seed}", [*teacher, *warm_start, *links], is_finished, run)
        return nodes

    def prepare(self) -> None:
        """Create the folders. Raises UserError if a cell's folder holds a run of another recipe."""
        for name in (SHARED, CELLS):
            (self.folder / name).mkdir(exist_ok=True)
        if not self.shared.needs_teacher or self.shared.teacher_file.is_file():  # a part of all recipes
            for cell in self.owner.values():
                self._refuse_other_recipe(cell)

    def train(self) -> None:
        """Train what is not finished, each run from its last state (see `train`)."""
        train({"": self}, self.emit)

    def _refuse_other_recipe(self, cell: Cell) -> None:
        refuse_other_recipe(self.folder / CELLS / cell.name, self.shared.recipe(cell.recipe))

    def _train_cell(self, cell: Cell) -> None:
        self._refuse_other_recipe(cell)
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


def graph_of(comparisons: Mapping[str, Comparison]) -> Graph:
    """The nodes of all parts, named part/node (or node, if the part has no name)."""
    return Graph([node for part, comparison in comparisons.items() for node in comparison.nodes(part)])


def train(comparisons: Mapping[str, Comparison], emit: Listener, only: str | None = None) -> None:
    """Train what is not finished, each run from its last state; only: this node and what it needs.

    Other processes may do the same at the same time. Raises UserError, before training, if a cell's folder holds a run
    of another recipe.
    """
    graph = graph_of(comparisons)
    graph = graph if only is None else graph.with_needs(only)
    for comparison in comparisons.values():
        comparison.prepare()
    graph.complete(emit)


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

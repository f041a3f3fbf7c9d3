"""What all cells share, trained once: the teacher, and each student's warm start on each seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mcd_cli.comparison.plan import Cell, warm_start_recipe, with_teacher
from mcd_cli.engine.checkpoint import Checkpoints
from mcd_cli.engine.events import InfoMessage
from mcd_cli.engine.results import Result
from mcd_cli.engine.run import Run
from mcd_cli.files import write_whole
from mcd_cli.ladder.folder import LOCK, METRICS, RECIPE, RunFolder
from mcd_cli.ladder.metrics import WARM_START
from mcd_cli.methods.base import TEACHER
from mcd_cli.recipe.schema import Recipe

SHARED = "shared"
TEACHER_FILE = "teacher.safetensors"

Engine = Callable[[Recipe, RunFolder], Run]


class Shared:
    """The folder `shared/` of a comparison. Results are stored under a hash of everything that decides them."""

    def __init__(self, folder: Path, base: Recipe, engine: Engine) -> None:
        self.folder = folder / SHARED
        self.base = base
        self.engine = engine
        self.store = Checkpoints(self.folder)

    @property
    def teacher_file(self) -> Path:
        return self.folder / TEACHER_FILE

    def recipe(self, recipe: Recipe) -> Recipe:
        """The recipe with the comparison's teacher, if that exists already."""
        if not self.teacher_file.is_file():
            return recipe
        return with_teacher(recipe, str(self.teacher_file), self.base.teacher.arch)

    def train_teacher(self) -> None:
        """Train the base recipe's teacher, on the base recipe's seed, unless it is a file or was trained before."""
        self.folder.mkdir(exist_ok=True)
        if self.base.teacher.file is not None or self.teacher_file.is_file():
            return
        with open_run(self.folder / TEACHER, self.base) as folder:
            run = self.engine(self.base, folder)
            run.start(TEACHER)
            assert run.teacher is not None
            write_whole(self.teacher_file, run.teacher.path.read_bytes())

    def warm_starts(self, cell: Cell, company: Sequence[Cell]) -> Result | None:
        """The cell's students after their warm start; None if the recipe has none. Missing students are trained now.

        company: the cells of the same seed; students that they lack are trained in the same run.
        """
        recipe = self.recipe(cell.recipe)
        if not recipe.warm_start.epochs:
            return None
        wanted = dict(recipe.students)
        for other in company:
            if _key(other.recipe, {}) == _key(cell.recipe, {}):
                wanted = {**other.recipe.students, **wanted}
        missing = {name: arch for name, arch in wanted.items() if self._file(recipe, name, arch) is None}
        if missing.keys() & recipe.students.keys():
            self._train(warm_start_recipe(recipe, missing))
        best, last = {}, {}
        for name, arch in recipe.students.items():
            file = self._file(recipe, name, arch)
            assert file is not None
            result = Result.of(self.store.load_stage(file))
            best[name], last[name] = result.best[name], result.last[name]
        return Result(best, last)

    def _train(self, recipe: Recipe) -> None:
        with open_run(
            self.folder / f"{WARM_START}-seed{recipe.seed}-{_key(recipe, recipe.students)}", recipe
        ) as folder:
            run = self.engine(recipe, folder)
            run.emit(InfoMessage(f"warm start of seed {recipe.seed}, shared by all methods"))
            result = run.start(WARM_START)[WARM_START]
            for name, arch in recipe.students.items():
                alone = Result({name: result.best[name]}, {name: result.last[name]})
                self.store.save_stage(self._name(recipe, name, arch), alone.tensors())

    def _file(self, recipe: Recipe, student: str, arch: str) -> str | None:
        files = sorted(self.folder.glob(f"{self._name(recipe, student, arch)}-*.safetensors"))
        return files[0].name if files else None

    def _name(self, recipe: Recipe, student: str, arch: str) -> str:
        return f"{WARM_START}-{student}-seed{recipe.seed}-{_key(recipe, {student: arch})}"


def open_run(path: Path, recipe: Recipe) -> RunFolder:
    """The run's folder, new or to resume; an abandoned one without a recipe is started again."""
    if (path / RECIPE).is_file():
        return RunFolder(path)
    for name in (LOCK, METRICS):  # empty files, left by a process killed before it wrote the recipe
        (path / name).unlink(missing_ok=True)
    return RunFolder.create(str(path), recipe)


def _key(recipe: Recipe, students: dict[str, str]) -> str:
    """Hash of everything that decides a warm start; the teacher is not part of that."""
    content = warm_start_recipe(recipe, {"student": "resnet10-xs"}).content()
    del content["teacher"], content["students"]
    key = json.dumps([content, sorted(students.items())], sort_keys=True)
    return hashlib.sha256(key.encode()).hexdigest()[:16]

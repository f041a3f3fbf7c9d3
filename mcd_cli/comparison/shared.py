"""What all cells share, trained once: the teacher, and each student's warm start on each seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from mcd_cli.comparison.plan import Cell, warm_start_recipe, with_teacher
from mcd_cli.engine.checkpoint import Checkpoints
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

    @property
    def needs_teacher(self) -> bool:
        """Whether the teacher is trained first; otherwise it is a file."""
        return self.base.teacher.file is None

    def train_teacher(self) -> None:
        """Train the base recipe's teacher, on the base recipe's seed."""
        with open_run(self.folder / TEACHER, self.base) as folder:
            run = self.engine(self.base, folder)
            run.start(TEACHER)
            assert run.teacher is not None
            write_whole(self.teacher_file, run.teacher.path.read_bytes())

    def has_warm_starts(self, recipe: Recipe) -> bool:
        """Whether the warm starts of all students of this recipe exist."""
        return not self._missing(recipe)

    def train_warm_starts(self, recipe: Recipe) -> None:
        """Train those of the recipe's students that have no warm start yet, in one run."""
        alone = warm_start_recipe(self.recipe(recipe), self._missing(recipe))
        with open_run(self.folder / f"{WARM_START}-seed{alone.seed}-{_key(alone, alone.students)}", alone) as folder:
            run = self.engine(alone, folder)
            result = run.start(WARM_START)[WARM_START]
            for name, arch in alone.students.items():
                one = Result({name: result.best[name]}, {name: result.last[name]})
                self.store.save_stage(self._name(alone, name, arch), one.tensors())

    def warm_starts(self, recipe: Recipe) -> Result | None:
        """The recipe's students after their warm start; None if the recipe has none."""
        if not recipe.warm_start.epochs:
            return None
        best, last = {}, {}
        for name, arch in recipe.students.items():
            file = self._file(recipe, name, arch)
            assert file is not None
            result = Result.of(self.store.load_stage(file))
            best[name], last[name] = result.best[name], result.last[name]
        return Result(best, last)

    def _missing(self, recipe: Recipe) -> dict[str, str]:
        return {name: arch for name, arch in recipe.students.items() if self._file(recipe, name, arch) is None}

    def _file(self, recipe: Recipe, student: str, arch: str) -> str | None:
        files = sorted(self.folder.glob(f"{self._name(recipe, student, arch)}-*.safetensors"))
        return files[0].name if files else None

    def _name(self, recipe: Recipe, student: str, arch: str) -> str:
        return f"{WARM_START}-{student}-seed{recipe.seed}-{_key(recipe, {student: arch})}"


def warm_start_groups(cells: Sequence[Cell]) -> dict[str, Recipe]:
    """Node → the recipe, with the students of all cells that share this warm start: one seed and the same settings."""
    groups: dict[str, Recipe] = {}
    for cell in cells:
        if cell.recipe.warm_start.epochs:
            name = warm_start_node(cell.recipe)
            known = groups[name].students if name in groups else {}
            groups[name] = cell.recipe.model_copy(update={"students": {**known, **cell.recipe.students}})
    return groups


def warm_start_node(recipe: Recipe) -> str:
    return f"{WARM_START}-seed{recipe.seed}-{_key(recipe, {})[:8]}"


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

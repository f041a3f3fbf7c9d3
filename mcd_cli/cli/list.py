"""`mcd list`: the names that options take, one table for each kind. No torch: the tables' rows say it all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError, unknown
from mcd_cli.ladder.folder import MANIFEST, METRICS, RECIPE
from mcd_cli.ladder.variants import FORMATS
from mcd_cli.loggers import LOGGERS
from mcd_cli.losses import LOSSES
from mcd_cli.methods import METHODS
from mcd_cli.models import ARCHITECTURES
from mcd_cli.reporting.console import print_json, results, table

RUNS = "runs"
WIDE = 100  # columns
NBSP = "\N{NO-BREAK SPACE}"
RESUME = "mcd distill --resume RUN finishes a run; mcd select --run RUN says what is damaged"
Cell = str | list[str] | dict[str, float]  # text, names, or students with their accuracy on val, a fraction
Rows = Iterator[tuple[Cell, ...]]


@dataclass(frozen=True)
class Kind:
    """A table: its columns, the first of which is a name, and where its rows come from."""

    columns: tuple[str, ...]
    rows: Callable[[], Rows]
    remark: str = ""
    gives_way: str = ""  # the column that a terminal narrower than `WIDE` does without


def list_names(kind: str, *, json_output: bool = False) -> None:
    """Print the names of that kind with a line each, see `KINDS`. Raises UserError for an unknown kind."""
    if kind not in KINDS:
        raise unknown("kind of list", kind, KINDS)
    columns, rows = KINDS[kind].columns, list(KINDS[kind].rows())
    if json_output:
        keys = [column.replace(" ", "_") for column in columns]
        print_json({kind: [dict(zip(keys, row, strict=True)) for row in rows]})
        return
    console = results()
    shown = [i for i, column in enumerate(columns) if console.width >= WIDE or column != KINDS[kind].gives_way]
    drawn = table(console, *(columns[i] for i in shown))
    for column in drawn.columns[1:]:
        column.justify, column.no_wrap = "left", False
    for row in rows:
        drawn.add_row(*(_shown(row[i], NBSP if console.is_terminal else " ") for i in shown))
    console.print(drawn)
    if KINDS[kind].remark:
        console.print(KINDS[kind].remark)


def _shown(cell: Cell, space: str) -> str:
    if isinstance(cell, dict):
        return ", ".join(f"{name}{space}{value:.1%}" for name, value in cell.items())
    return cell if isinstance(cell, str) else ", ".join(cell)


def _recipes() -> Rows:
    from mcd_cli.recipe.loading import recipe_names, recipes_folder

    yield from ((name, _first_comment(recipes_folder() / f"{name}.toml")) for name in recipe_names())


def _overlays() -> Rows:
    from mcd_cli.recipe.loading import recipes_folder
    from mcd_cli.recipe.overlays import OVERLAYS

    for folder in (recipes_folder() / kind for kind in OVERLAYS):
        for path in sorted(folder.rglob("*.toml")):
            yield path.relative_to(folder).with_suffix("").as_posix(), _first_comment(path)


def _first_comment(path: Path) -> str:
    """The first sentence of the comment at the head of a recipe."""
    words: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        words.append(line.removeprefix("#").strip())
    return " ".join(words).partition(". ")[0].rstrip(".")


def _runs() -> Rows:
    """The runs under ./runs, newest first."""
    found = [_run(recipe.parent) for recipe in sorted(Path(RUNS).glob(f"*/{RECIPE}"))]
    yield from (row for _, row in sorted(found, key=lambda run: -run[0]))


def _run(folder: Path) -> tuple[float, tuple[Cell, ...]]:
    """When it ended, or last wrote; and its row, with the best two students."""
    from mcd_cli.ladder.manifest import load_ladder
    from mcd_cli.recipe.loading import read_changes

    written = max(path.stat().st_mtime for path in (folder / RECIPE, folder / METRICS) if path.exists())
    try:
        if not (folder / MANIFEST).is_file():
            recipe = read_changes(folder / RECIPE)
            method, data = str(recipe.get("method", "")), str(recipe.get("dataset", ""))
            return written, (str(folder), method, data, {}, "not finished", "")
        ladder = load_ladder(folder)
    except UserError:
        return written, (str(folder), "", "", {}, "damaged", "")
    best = sorted(ladder.students, key=lambda student: -student.accuracy.val)[:2]
    accuracies = {student.name: student.accuracy.val for student in best}
    row = (str(folder), ladder.method, ladder.dataset.name, accuracies, "finished", f"{ladder.moment:%Y-%m-%d %H:%M}")
    return ladder.moment.timestamp(), row


KINDS = {
    "recipes": Kind(("recipe", "summary"), _recipes, "mcd show NAME shows all keys of a recipe"),
    "overlays": Kind(("overlay", "summary"), _overlays, "for mcd compare --methods NAME or --overlay NAME"),
    "methods": Kind(
        ("method", "summary", "settings"),
        lambda: ((name, row.summary, list(row.settings)) for name, row in METHODS.items()),
    ),
    "losses": Kind(
        ("loss", "summary", "source"), lambda: ((name, row.summary, row.source) for name, row in LOSSES.items())
    ),
    "architectures": Kind(
        ("architecture", "family"),
        lambda: ((name, str(row.target).split(":")[0].split(".")[-1]) for name, row in ARCHITECTURES.items()),
        "and torchvision:NAME, torchvision:NAME@small, timm:NAME, hf-hub:USER/REPO; mcd profile NAME shows their cost",
    ),
    "datasets": Kind(
        ("data set", "summary"),
        lambda: ((name, row.summary) for name, row in DATASETS.items()),
        "and any folder of images with a folder per class",
    ),
    "loggers": Kind(("logger", "run in"), lambda: ((name, row.summary) for name, row in LOGGERS.items())),
    "formats": Kind(
        ("format", "written by", "summary"), lambda: ((name, row.command, row.summary) for name, row in FORMATS.items())
    ),
    "runs": Kind(("run", "method", "data set", "best on val", "state", "ended"), _runs, RESUME, gives_way="ended"),
}

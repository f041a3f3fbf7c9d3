"""Tuning: recipe keys chosen on val, one key after another, in short runs with the smallest students.

One key at a time needs the sum of the grids' sizes instead of their product, and every run is a cell of an ordinary
comparison: it is kept, resumed and shown like one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mcd_cli.comparison.cells import read_cell
from mcd_cli.comparison.runner import Comparison
from mcd_cli.errors import UserError
from mcd_cli.methods import METHODS
from mcd_cli.models import build
from mcd_cli.recipe.loading import lay_over
from mcd_cli.recipe.overlays import SHARED, Contender
from mcd_cli.recipe.schema import Recipe

GRID: Mapping[str, tuple[float, ...]] = {
    "distill.total": (1.0, 3.0, 9.0),
    "distill.lambda": (0.5, 0.9),
    "distill.tau": (2.0, 4.0),
    "optimizer.weight_decay": (1e-4, 5e-4),
}
"""The values that are tried by default, of the keys that the method reads, in this order: the largest effect first."""
FEWEST_EPOCHS, SHARE = 5, 5  # a short run has a fifth of the recipe's epochs, but at least five
TUNED = "tuned.toml"


@dataclass(frozen=True)
class Choice:
    """One key's values with their accuracy on val, averaged over students and seeds, and the best of them."""

    key: str
    val: Mapping[Any, float]
    best: Any


def default_grid(recipe: Recipe) -> dict[str, tuple[Any, ...]]:
    """The part of GRID that the recipe's method reads."""
    settings = METHODS[recipe.method].settings
    return {
        key: values
        for key, values in GRID.items()
        if not key.startswith("distill.") or key.removeprefix("distill.") in settings
    }


def short(recipe: Recipe, num_students: int, epochs: int | None = None) -> Recipe:
    """The recipe of the short runs: fewer epochs, and only the smallest students.

    epochs: None for a fifth of the recipe's, but at least five.
    """
    ordered = sorted(recipe.students.items(), key=lambda item: _num_params(item[1]))
    few = min(recipe.epochs, max(FEWEST_EPOCHS, recipe.epochs // SHARE)) if epochs is None else epochs
    return lay_over(recipe, {"epochs": few}).model_copy(update={"students": dict(ordered[:num_students])})


def search(
    recipe: Recipe,
    grid: Mapping[str, Sequence[Any]],
    evaluate: Callable[[Sequence[Contender]], Mapping[str, float]],
) -> list[Choice]:
    """Choose each key's value in turn, the earlier ones at their best. A tie keeps the value that comes first.

    The recipe's own value is tried first, then the grid's. evaluate: contenders → accuracy on val by name.
    """
    changes: dict[str, Any] = {}
    choices = []
    for key, values in grid.items():
        candidates = candidates_of(recipe, key, values)
        contenders = {value: contender({**changes, key: value}) for value in candidates}
        val = evaluate(list(contenders.values()))
        by_value = {value: val[contenders[value].name] for value in candidates}
        best = max(candidates, key=lambda value: by_value[value])
        changes[key] = best
        choices.append(Choice(key, by_value, best))
    return choices


def check_grid(recipe: Recipe, grid: Mapping[str, Sequence[Any]]) -> None:
    """Raises UserError for a key that does not exist or that all runs share, and for a value that it cannot take."""
    for key, values in grid.items():
        value_of(recipe, key)
        if key.partition(".")[0] in SHARED:
            raise UserError(f"--grid {key}: all runs share it; choose it yourself, with --set {key}=…")
        for value in values:
            lay_over(recipe, {key: value})


def contender(changes: Mapping[str, Any]) -> Contender:
    """A contender named after its changes, such as `total-3-lambda-0.9`."""
    return Contender("-".join(f"{key.rpartition('.')[2]}-{written(value)}" for key, value in changes.items()), changes)


def num_runs(recipe: Recipe, grid: Mapping[str, Sequence[Any]]) -> int:
    """How many short runs `search` needs on each seed."""
    return 1 + sum(len(candidates_of(recipe, key, values)) - 1 for key, values in grid.items())


def candidates_of(recipe: Recipe, key: str, values: Sequence[Any]) -> list[Any]:
    """The recipe's own value and the grid's, each once and as the recipe stores it: 1.0 where 1 was written."""
    return list(dict.fromkeys([value_of(recipe, key), *(value_of(lay_over(recipe, {key: v}), key) for v in values)]))


def value_of(recipe: Recipe, key: str) -> Any:
    """A recipe's value under a dotted key. Raises UserError where there is none."""
    value: Any = recipe.model_dump(by_alias=True)
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            lay_over(recipe, {key: 0})  # names the nearest key
            raise UserError(f"--grid {key}: the recipe has no such key")
        value = value[part]
    if isinstance(value, Mapping | list | tuple):
        raise UserError(f"--grid {key} is a table or a list; name a key with a single value")
    return value


def accuracy_on_val(comparison: Comparison) -> dict[str, float]:
    """Contender → accuracy on val at each student's best epoch, averaged over students and seeds."""
    values: dict[str, list[float]] = {}
    for (name, _), cell in comparison.owner.items():
        trained = read_cell(comparison.folder, cell, comparison.shared.recipe(cell.recipe))
        values.setdefault(name, []).extend(student.accuracy.val for student in trained.ladder.students)
    return {name: sum(of_name) / len(of_name) for name, of_name in values.items()}


def _num_params(arch: str) -> int:
    return sum(p.numel() for p in build(arch, 10).parameters())


def written(value: Any) -> str:
    """A value as a user would type it."""
    return f"{value:g}" if isinstance(value, float) else str(value)

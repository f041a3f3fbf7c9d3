"""`mcd show`: a recipe with all its keys, and where the value of each comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mcd_cli.recipe.loading import load_recipe, parse_setting, recipe_chain
from mcd_cli.reporting.console import print_json, results, table

DEFAULT, OPTION = "default", "--set"


def show(name: str, *, settings: Sequence[str] = (), json_output: bool = False) -> None:
    """Print every key of a recipe (a name, a file, or a run's folder), its value, and the recipe that set it.

    settings: `KEY=VALUE`, as of --set. Raises UserError with the nearest name or key.
    """
    if Path(name).is_dir():
        name = str(Path(name) / "recipe.toml")
    changes: dict[str, Any] = dict(map(parse_setting, settings))
    recipe = load_recipe(name, changes).model_dump(exclude_none=True)
    sources = {key: source for source, content in recipe_chain(name) for key in _flat(content)}
    sources |= dict.fromkeys(changes, OPTION)
    values = {key: value for key, value in _flat(recipe).items() if value != {}}
    origins = {key: _source(key, sources) for key in values}
    if json_output:
        print_json({"recipe": recipe, "from": origins})
        return
    console = results()
    drawn = table(console, "key", "value", "from")
    for column in drawn.columns[1:]:
        column.justify = "left"
    drawn.columns[1].no_wrap, drawn.columns[1].overflow = False, "fold"
    for key, value in values.items():
        drawn.add_row(key, _toml(value), origins[key], style="dim" if origins[key] == DEFAULT else None)
    console.print(drawn)


def _source(key: str, sources: Mapping[str, str]) -> str:
    """Who set the key, or a table that contains it."""
    parts = key.split(".")
    places = [".".join(parts[:length]) for length in range(len(parts), 0, -1)]
    return next((sources[place] for place in places if place in sources), DEFAULT)


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys; `students` is one value, as it is replaced whole."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, Mapping) and value and key != "students":
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _toml(value: Any) -> str:
    import tomli_w

    if isinstance(value, Mapping):
        return ", ".join(name if name == arch else f"{name}={arch}" for name, arch in value.items())
    return " ".join(tomli_w.dumps({"x": value}).removeprefix("x = ").split())

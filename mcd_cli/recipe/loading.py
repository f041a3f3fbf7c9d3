"""Loads recipes from files and options: names, `extends`, `--set`, and a one-line error for the first problem."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError, first_problem, reason_of, unknown
from mcd_cli.files import as_path, read_small
from mcd_cli.recipe.schema import Recipe

MAX_BYTES = 2**16  # in a recipe file
MAX_BASES = 20  # in a chain of recipes that extend each other
MAX_DEPTH = 10  # dots in a key
MAX_DOTS = 100  # dots in a line


def load_recipe(name: str | None, overrides: Mapping[str, Any], *, dataset: Any = None) -> Recipe:
    """The resolved recipe. Later sources win: defaults, the recipes it extends, the recipe, overrides (dotted keys).

    Without a name, the recipe named after the data set is used (`folder` if there is none). Raises UserError with
    the nearest name or key.
    """
    if name is None:
        dataset = "numbers" if dataset is None else dataset
        name = dataset if dataset in list(DATASETS) and dataset in recipe_names() else "folder"
    return parse_recipe(_merged(_read(name), overrides))


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """A plain nested mapping → Recipe. Raises UserError for the first problem."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def lay_over(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The base recipe with some keys changed (nested or dotted). Raises UserError."""
    return parse_recipe(_merged(base.model_dump(exclude_none=True), changes))


def read_changes(path: Path) -> dict[str, Any]:
    """The keys that a recipe file and the recipes it extends set, without defaults. Raises UserError."""
    return _read(str(path))


def recipe_chain(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The recipe and those it extends, the innermost base first: the name and the keys it sets. Raises UserError."""
    chain: list[tuple[str, dict[str, Any]]] = []
    seen: list[str] = []
    while True:
        path = _find(name)
        real_path = os.path.realpath(path)
        if real_path in seen:
            raise UserError(f"recipe {name!r} extends itself: {' -> '.join((*seen, real_path))}; remove one `extends`")
        if len(seen) > MAX_BASES:
            raise UserError(f"recipe {path} is at the end of a chain of more than {MAX_BASES} recipes; extend fewer")
        seen.append(real_path)
        try:
            content = _toml(read_small(path, MAX_BYTES).decode())
        except (OSError, ValueError, RecursionError) as error:  # not TOML, not UTF-8, integers of thousands of digits
            raise UserError(f"recipe {path} cannot be read: {reason_of(error)}") from None
        base = content.pop("extends", None)
        chain.insert(0, (path.stem if path.parent == recipes_folder() else str(path), content))
        if base is None:
            return chain
        if not isinstance(base, str):
            raise UserError(f"recipe {path}: extends takes the name of one recipe, got {base!r}")
        siblings = (path.parent / as_path(base), path.parent / as_path(f"{base}.toml"))
        name = next((str(sibling) for sibling in siblings if sibling.is_file()), base)


def recipe_names() -> list[str]:
    """The names of the shipped recipes, sorted."""
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def parse_setting(text: str) -> tuple[str, Any]:
    """Parse `key=value` from --set: the value is TOML, and a bare word is a string. Raises UserError."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(f"--set takes key=value, for example coordinator.every=5; got {text!r}")
    try:
        parsed = _toml(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except (ValueError, RecursionError):  # an integer of thousands of digits, endless nested brackets
        raise UserError(f"--set {key.strip()}: {value[:80]!r}... is too long for a value; shorten it") from None
    if parsed.keys() != {"value"}:
        raise UserError(f"--set takes one key=value at a time; got {text!r}")
    return key.strip(), parsed["value"]


def _toml(text: str) -> dict[str, Any]:
    """Parse TOML. Raises ValueError (TOMLDecodeError is a subclass) or RecursionError."""
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"a line with more than {MAX_DOTS} dots")  # tomllib takes minutes for a key of 20,000 parts
    return tomllib.loads(text)


def _read(name: str) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for _, content in recipe_chain(name):
        merged = _merged(merged, content)
    return merged


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = as_path(name)
        if not path.is_file():
            raise UserError(f"recipe file {name} does not exist")
        return path
    path = recipes_folder() / f"{name}.toml"
    if not path.is_file():
        raise unknown("recipe", name, recipe_names())
    return path


def recipes_folder() -> Path:
    """The folder of the shipped recipes: inside an installed package, beside it in a checkout or editable install."""
    package = Path(__file__).parent.parent
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parent / "recipes"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The base with the changes merged in; dotted keys address tables. `students` is replaced, not merged."""
    merged = dict(base)
    for dotted, value in changes.items():
        key, dot, rest = dotted.partition(".")
        if dotted.count(".") > MAX_DEPTH:
            raise UserError(f"recipe key {dotted[:80]!r}... does not exist: it has {dotted.count('.') + 1:,} parts")
        if dot:
            inner = merged.get(key, {})
            if not isinstance(inner, Mapping):
                hint = f"; write student.{rest}" if key == "students" else ""
                raise UserError(f"recipe key {key!r} is a value, not a table; {dotted!r} does not exist{hint}")
            merged[key] = _merged(inner, {rest: value})
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "students":
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    if problem["type"] == "extra_forbidden":
        path = [str(part) for part in problem["loc"]]
        section = _section(path[:-1])
        fields = [info.alias or key for key, info in section.model_fields.items()]
        prefix = "".join(f"{part}." for part in path[:-1])
        return str(unknown("recipe key", ".".join(path), [prefix + field for field in fields]))
    place, message = first_problem(error)
    if problem["type"] in ("model_type", "dict_type"):
        message = f"this must be a table, got {problem['input']!r}"
    return f"recipe key {place or 'recipe'}: {message}"


def _section(path: list[str]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in path:
        if part in section.model_fields:  # not a place in a list of tables, nor a student's name
            section = next(_tables(section.model_fields[part].annotation), section)
    return section


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a field takes: its type itself, or inside of an optional one, a list."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)

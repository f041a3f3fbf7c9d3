"""Recipes from files and options: names, `extends`, `--set`, and one line for the first thing wrong."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError, first_problem, reason_of, unknown
from mcd_cli.files import as_path, read_small
from mcd_cli.recipe.schema import Recipe

MAX_BYTES = 2**16  # of a recipe's file
MAX_BASES = 20  # recipes that extend each other
MAX_DEPTH = 10  # dots of a key
MAX_DOTS = 100  # of a line


def load_recipe(name: str | None, overrides: Mapping[str, Any], *, dataset: Any = None) -> Recipe:
    """The resolved recipe: defaults < the recipe (and what it extends) < overrides (dotted keys).

    Without a name, the recipe named after the data set (`folder` for an image folder). Raises UserError with the
    nearest name or key.
    """
    if name is None:
        wanted = "digits" if dataset is None else dataset
        name = wanted if wanted in list(DATASETS) else "folder"
    return parse_recipe(_merged(_read(name), overrides))


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """A plain nested mapping → Recipe; the first thing wrong with it is told in one line."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def lay_over(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The base with some keys changed (nested or dotted)."""
    return parse_recipe(_merged(base.model_dump(exclude_none=True), changes))


def read_changes(path: Path) -> dict[str, Any]:
    """What a recipe file holds, and what it extends, as it stands: only what it changes."""
    return _read(str(path))


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` of --set: a TOML value; a bare word is a string."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(f"--set takes key=value, for example coordinator.every=5; got {text!r}")
    try:
        parsed = _toml(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except (ValueError, RecursionError):  # an integer of thousands of digits, brackets without end
        raise UserError(f"--set {key.strip()}: {value[:80]!r}... is no value; write it shorter") from None
    if parsed.keys() != {"value"}:
        raise UserError(f"--set takes one key=value at a time; got {text!r}")
    return key.strip(), parsed["value"]


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError (TOMLDecodeError is one) or RecursionError."""
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"a line with more than {MAX_DOTS} dots")  # tomllib takes minutes for a key of 20,000 parts
    return tomllib.loads(text)


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = _find(name)
    own = os.path.realpath(path)
    if own in seen:
        raise UserError(f"recipe {name!r} extends itself: {' -> '.join((*seen, own))}")
    if len(seen) > MAX_BASES:
        raise UserError(f"recipe {path} is more than {MAX_BASES} recipes below the first; extend fewer")
    try:
        content = _toml(read_small(path, MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:  # no TOML, no UTF-8, integers of thousands of digits
        raise UserError(f"recipe {path} cannot be read: {reason_of(error)}") from None
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"recipe {path}: extends takes one recipe's name, got {base!r}")
    beside = path.parent / as_path(f"{base}.toml")
    return _merged(_read(str(beside) if beside.is_file() else base, (*seen, own)), content)


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = as_path(name)
        if not path.is_file():
            raise UserError(f"no recipe file {name}")
        return path
    path = recipes_folder() / f"{name}.toml"
    if not path.is_file():
        raise unknown("recipe", name, recipe_names())
    return path


def recipes_folder() -> Path:
    """Inside the package when installed from a wheel, beside it in a checkout or an editable install."""
    package = Path(__file__).parent.parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """base with changes laid over it; dotted keys reach into tables. `students` is replaced, not merged."""
    merged = dict(base)
    for dotted, value in changes.items():
        key, dot, rest = dotted.partition(".")
        if dotted.count(".") > MAX_DEPTH:
            raise UserError(f"recipe key {dotted[:80]!r}... does not exist: it has {dotted.count('.') + 1:,} parts")
        if dot:
            inner = merged.get(key, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"recipe key {key!r} is a value, not a table; {dotted!r} does not exist")
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
        owner = _section(path[:-1])
        fields = [info.alias or key for key, info in owner.model_fields.items()]
        prefix = "".join(f"{part}." for part in path[:-1])
        return str(unknown("recipe key", ".".join(path), [prefix + field for field in fields]))
    place, message = first_problem(error)
    if problem["type"] in ("model_type", "dict_type"):
        message = f"this is a table, got {problem['input']!r}"
    return f"recipe key {place or 'recipe'}: {message}"


def _section(path: list[str]) -> type[BaseModel]:
    owner: type[BaseModel] = Recipe
    for part in path:
        annotation = owner.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        owner = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return owner

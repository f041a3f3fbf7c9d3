"""The tables of recipe keys in docs/recipes.md, written from the schema: `python scripts/recipe_tables.py`.

Type, range and default are the schema's own; a key's description is the docstring below its field. With --check the
page is compared instead of written (exit code 1 if it is stale).
"""

from __future__ import annotations

import ast
import inspect
import sys
import textwrap
import types
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from mcd_cli.methods import METHODS, takers
from mcd_cli.methods.settings import ACCEPTED_BY_ALL
from mcd_cli.recipe.schema import Recipe

PAGE = Path(__file__).parent.parent / "docs" / "recipes.md"
BEGIN, END = "<!-- keys: written by scripts/recipe_tables.py -->", "<!-- keys: end -->"
SIGNS: tuple[tuple[type, str, str], ...] = (
    (annotated_types.Ge, "ge", "≥"),
    (annotated_types.Gt, "gt", ">"),
    (annotated_types.Le, "le", "≤"),
    (annotated_types.Lt, "lt", "<"),
)


def tables() -> str:
    """All tables: the recipe's own keys first, then a section for each of its tables."""
    sections = {name: section for name, info in Recipe.model_fields.items() if (section := _section(info.annotation))}
    parts = ["### Top level", _table(Recipe, skip=sections)]
    for name, section in sections.items():
        by_name = get_origin(Recipe.model_fields[name].annotation) is dict
        parts += [f"### `[{name}.NAME]`" if by_name else f"### `[{name}]`", _summary(section)]
        parts.append(_table(section, table=name, default=section() if by_name else getattr(Recipe(), name)))
    return "\n\n".join(parts)


def written(page: str) -> str:
    """The page with its tables brought up to date."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{PAGE} lacks the marks {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _table(
    section: type[BaseModel], table: str = "", skip: Container[str] = (), default: BaseModel | None = None
) -> str:
    documents = descriptions(section)
    lines = ["| key | takes | default | |", "|---|---|---|---|"]
    default = default or Recipe()
    for name, info in section.model_fields.items():
        if name in skip:
            continue
        key = info.alias or name
        text = documents[name] + (_takers(key) if table == "distill" else "")
        cells = [f"`{key}`", _takes(info), _value(getattr(default, name)), text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def descriptions(section: type[BaseModel]) -> dict[str, str]:
    """Field → the docstring below it; raises KeyError, naming the first field that has none."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(definition, ast.ClassDef)
    found: dict[str, str] = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        match field, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = " ".join(text.split())
    for name, info in section.model_fields.items():
        if name not in found and not _section(info.annotation):
            raise KeyError(f"{section.__name__}.{name} has no docstring below it")
    return found


def _takers(key: str) -> str:
    """Which methods take a key of [distill], or ignore it."""
    if key not in ACCEPTED_BY_ALL:
        return f" Only for {_names(takers(key))}."
    return f" Ignored by {_names(name for name in METHODS if name not in takers(key))}."


def _names(methods: Iterable[str]) -> str:
    return ", ".join(f"`{method}`" for method in methods)


def _takes(info: FieldInfo) -> str:
    """A field's type and range, in words."""
    bounds = [f"{sign} {_number(getattr(m, key))}" for m in info.metadata for t, key, sign in SIGNS if isinstance(m, t)]
    return " ".join([_type(info.annotation), ", ".join(bounds)]).strip()


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (types.UnionType, Union):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is tuple and _section(arguments[0]):
        return "list of texts and tables"
    if origin is tuple:
        return f"{len(arguments)} numbers"
    if origin is dict:
        return "table or list"
    return {str: "text", int: "integer", float: "number", bool: "true, false"}[annotation]


def _number(value: Any) -> str:
    return f"{value:,}" if value < 2**62 else "2⁶³ − 1"


def _value(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "the paper's five"
    if isinstance(value, tuple):
        return str(list(value))
    return f"`{value}`" if isinstance(value, str) else f"{value:g}"


def _summary(section: type[BaseModel]) -> str:
    return " ".join((section.__doc__ or "").split())


def _section(annotation: Any) -> type[BaseModel] | None:
    """The annotation itself where it is a table of its own; of tables by name, their kind."""
    if get_origin(annotation) is dict:
        annotation = get_args(annotation)[1]
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def main() -> None:
    page = PAGE.read_text(encoding="utf-8")
    current = written(page)
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(current, encoding="utf-8")
    elif current != page:
        raise SystemExit(f"{PAGE} is stale: run python scripts/recipe_tables.py")


if __name__ == "__main__":
    main()

"""Dataclasses of options as command-line flags: typer itself takes one parameter per flag."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass
from typing import Any, cast, get_type_hints

NO_FLAG = {"flag": False}
"""Metadata of a field that only Python sets."""


def expand(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer needs it: each parameter that is a dataclass becomes a flag per field."""
    groups: dict[str, type] = {}
    flags: list[inspect.Parameter] = []
    for parameter in inspect.signature(command, eval_str=True).parameters.values():
        if is_dataclass(parameter.annotation):
            groups[parameter.name] = cast(type, parameter.annotation)
            flags += _flags(groups[parameter.name])
        else:
            flags.append(parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY))

    @functools.wraps(command)
    def expanded(**values: Any) -> None:
        for name, group in groups.items():
            values[name] = group(**{flag.name: values.pop(flag.name) for flag in _flags(group)})
        command(**values)

    expanded.__signature__ = inspect.Signature(flags)  # type: ignore[attr-defined]
    return expanded


def _flags(group: type) -> Iterator[inspect.Parameter]:
    """A parameter per field that is a flag, those of the class itself before those of its base."""
    hints, own = get_type_hints(group, include_extras=True), inspect.get_annotations(group)
    for field in sorted(fields(group), key=lambda field: field.name not in own):
        if field.metadata == NO_FLAG:
            continue
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )

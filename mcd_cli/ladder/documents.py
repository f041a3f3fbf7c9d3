"""JSON of a known shape: frozen dataclasses, which pydantic reads strictly."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from mcd_cli.errors import first_problem

T = TypeVar("T")

FINITE = ConfigDict(allow_inf_nan=False)  # rejects NaN and infinities


def _finite(content: dict[str, Any]) -> dict[str, Any]:
    json.dumps(content, allow_nan=False)
    return content


Plain = Annotated[dict[str, Any], AfterValidator(_finite)]
"""A JSON object with any content; its numbers must be finite."""


def without_defaults(entry: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """The entry without those fields of `added` (name → default) that are at their default.

    For fields that came later: a document from before keeps its bytes when it is written again.
    """
    return {key: value for key, value in entry.items() if key not in added or value != added[key]}


def read(adapter: TypeAdapter[T], content: bytes | str) -> T:
    """The document. Keys that the dataclass lacks are ignored, because a later version may have added them.

    Raises ValueError with the first problem and its place, in one line.
    """
    try:
        return adapter.validate_json(content, strict=True)
    except ValidationError as error:
        place, problem = first_problem(error)
        raise ValueError(f"{place}: {problem}" if place else problem) from None

"""JSON of a known shape as frozen dataclasses, whose annotations are the schema. Quick to import.

A field that takes no part in comparisons (`compare=False`) is not stored.
"""

from __future__ import annotations

import dataclasses
import json
import math
from types import NoneType, UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

_SHAPES = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}


def parse(content: bytes) -> Any:
    """A JSON document; raises ValueError where it is torn, is not JSON, or holds NaN or an infinity."""
    try:
        document = json.loads(content.decode(), parse_constant=_refuse, parse_float=_finite)
        if b"\\ud" in content.lower():  # half of a character can be escaped, and never written
            json.dumps(document, ensure_ascii=False).encode()
        return document
    except UnicodeEncodeError:
        raise ValueError("it holds half a character, an escaped surrogate alone") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, str, int, float, bool, tuple, dict[str, ...], Any or a union of them.

    Keys that the dataclass lacks are left out (a later version may add some); fields without a default must
    stand there. Raises ValueError, which says where.
    """
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return _read_object(kind, value, where)
    origin, parts = get_origin(kind), get_args(kind)
    if origin is UnionType:
        if value is None and NoneType in parts:
            return None
        (kind,) = (part for part in parts if part is not NoneType)
        return read(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list")
        if parts[-1] is ...:
            parts = parts[:1] * len(value)
        if len(value) != len(parts):
            raise ValueError(f"{where} must hold {len(parts)} values, not {len(value)}")
        return tuple(read(part, item, f"{where}[{i}]") for i, (part, item) in enumerate(zip(parts, value, strict=True)))
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be an object")
        return {key: read(parts[1], item, f"{where}.{key}") for key, item in value.items()}
    if kind is float and type(value) is int and abs(value) < 10**300:
        return float(value)
    if type(value) is not kind:
        raise ValueError(f"{where} must be {_SHAPES[kind]}")
    return value


def _read_object(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{where or 'the document'} must be an object")
    hints = get_type_hints(kind)
    given = {}
    for field in dataclasses.fields(kind):
        path = f"{where}.{field.name}" if where else field.name
        if not field.compare:
            continue
        if field.name in value:
            given[field.name] = read(hints[field.name], value[field.name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{path} is missing")
    try:
        return kind(**given)
    except ValueError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def write(value: Any) -> bytes:
    """A dataclass as JSON, in the order of its fields; equal values are equal bytes."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False).encode() + b"\n"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        fields = [field for field in dataclasses.fields(value) if field.compare]
        return {field.name: _plain(getattr(value, field.name)) for field in fields}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"it holds {constant}")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"it holds {text}, which is no finite number")
    return value

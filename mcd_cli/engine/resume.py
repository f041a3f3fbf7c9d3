"""What may change between a run's start and its going on: the machine, and nothing that decides the result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mcd_cli.errors import UserError


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError that shows the first thing of a run's identity that is not what it began with."""
    for key, old, new in _differences(then, now):
        raise UserError(f"--resume: the run's {key} has changed ({_shown(old)} then, {_shown(new)} now); undo that")


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`threads 2 then, 1 now; …` of the hardware, or nothing."""
    return "; ".join(f"{key} {_shown(old)} then, {_shown(new)} now" for key, old, new in _differences(then, now))


def _differences(then: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in {**then, **now}:
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(then.get(key), now.get(key), inner)
    elif then != now:
        yield path, then, now


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text  # a hash

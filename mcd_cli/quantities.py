"""Parses and prints quantities as people write them: `16M`, `400KB`, `1.5ms`, `72%`, `20steps`. Torch-free.

K, M and G are powers of 1000; KiB, MiB and GiB are powers of 1024; a bare number is a count, bytes or
milliseconds. Parsing is exact: no count or size passes through a float.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from mcd_cli.errors import UserError

_MICRO = ("us", "\u00b5s", "\u03bcs")  # the letter u, the micro sign, the Greek letter
_WRITTEN = re.compile(r"(\d*)(?:\.(\d*))?(?:e([+-]?\d{1,2}))?\s*([a-z\u00b5\u03bc%]*)", re.ASCII | re.IGNORECASE)
_LONGEST = 40  # characters; a longer text cannot be a quantity
_LARGEST = 10**18

_COUNT = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
_SIZE = _COUNT | {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_DURATION = dict.fromkeys(_MICRO, 1) | {"": 10**3, "ms": 10**3, "s": 10**6}  # microseconds
_ACCURACY = {"": 100, "%": 1}  # hundredths
_INTERVAL = {"step": 1, "steps": 1, "s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Interval:
    """How often to do something: every `steps` steps or every `seconds` seconds; exactly one is set."""

    steps: int | None = None
    seconds: float | None = None


def count(text: str | float) -> int:
    """A count (MACs, parameters): `16M`, `2.5G`, `320K`, `8008`. Raises UserError."""
    return _whole(text, _COUNT, "count", "16M, 2.5G, 320K or 8008")


def size(text: str | float) -> int:
    """A size in bytes: `400KB`, `1.5MiB`, `4096`. Raises UserError."""
    return _whole(text, _SIZE, "size", "400KB, 1.5MiB or 4096 (bytes)")


def duration(text: str | float) -> float:
    """A duration in milliseconds: `1.5ms`, `800us`, `2s`; a bare number is milliseconds. Raises UserError."""
    top, bottom, _ = _parse(text, _DURATION, "duration", "1.5ms, 800us or 2s")
    return top / (bottom * 1000)


def accuracy(text: str | float) -> float:
    """An accuracy as a fraction: `0.72` or `72%`; a bare number above 1 is an error. Raises UserError."""
    example = "0.72 or 72%"
    top, bottom, _ = _parse(text, _ACCURACY, "accuracy", example)
    if top > 100 * bottom:
        raise _refusal(text, "accuracy", example, "it is above 1")
    return top / (bottom * 100)


def interval(text: str) -> Interval:
    """An interval: `20steps`, `30s`, `2min`. Raises UserError."""
    example = "20steps, 30s or 2min"
    top, bottom, unit = _parse(text, _INTERVAL, "interval", example)
    if top == 0:
        raise _refusal(text, "interval", example, "it is zero")
    if not unit.startswith("step"):
        return Interval(seconds=top / bottom)
    if top % bottom:
        raise _refusal(text, "interval", example, "it is not a whole number")
    return Interval(steps=top // bottom)


def show_count(value: float, digits: int | None = None) -> str:
    """A count as `16.18M`: at most two decimals, or `digits` significant digits."""
    return _show(value, {"": 1, "K": 1e3, "M": 1e6, "G": 1e9}, digits)


def show_size(value: float, digits: int | None = None) -> str:
    """Bytes as `1.28MB`, in powers of 1000: at most two decimals, or `digits` significant digits."""
    return _show(value, {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9}, digits)


def show_ms(value: float, digits: int | None = None) -> str:
    """Milliseconds as `800us`, `1.5ms`, `2s`: at most two decimals, or `digits` significant digits."""
    return _show(value, {"us": 1e-3, "ms": 1, "s": 1e3}, digits)


def show_percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def show_time(seconds: float) -> str:
    """Seconds as `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"


def _show(value: float, units: Mapping[str, float], digits: int | None) -> str:
    """The value in the largest unit not above it; a value that rounds to 1000 of a unit becomes 1 of the next."""
    text = ""
    for unit, scale in units.items():
        scaled = value / scale
        decimals = 2 if digits is None or scaled <= 0 else digits - 1 - math.floor(math.log10(scaled))
        rounded = round(scaled, decimals)
        text = f"{rounded:.{max(decimals, 0)}f}"
        text = (text.rstrip("0").rstrip(".") if "." in text else text) + unit
        if rounded < 1000:
            break
    return text


def _whole(text: str | float, units: Mapping[str, int], kind: str, example: str) -> int:
    top, bottom, _ = _parse(text, units, kind, example)
    if top % bottom:
        raise _refusal(text, kind, example, "it is not a whole number")
    return top // bottom


def _parse(text: str | float, units: Mapping[str, int], kind: str, example: str) -> tuple[int, int, str]:
    """The value in the table's smallest unit as an exact fraction (top, bottom), and the unit in lower case."""
    if isinstance(text, str):
        written = text.strip(" ")
    elif isinstance(text, bool) or not isinstance(text, int | float) or not 0 <= text <= _LARGEST:
        raise _refusal(text, kind, example)
    else:
        written = str(int(text)) if text == int(text) else repr(float(text))
    match = _WRITTEN.fullmatch(written) if len(written) <= _LONGEST else None
    if match is None or not (match[1] or match[2]):
        raise _refusal(text, kind, example)
    unit = match[4].lower()
    if unit not in units:
        raise _refusal(text, kind, example, f"it has the unit {match[4]!r}" if unit else "it has no unit")
    fraction = match[2] or ""
    exponent = int(match[3] or 0) - len(fraction)
    top = int(match[1] + fraction) * units[unit] * 10 ** max(exponent, 0)
    bottom = 10 ** max(-exponent, 0)
    if top > _LARGEST * bottom:
        raise _refusal(text, kind, example, "it is too large")
    return top, bottom, unit


def _refusal(text: object, kind: str, example: str, why: str = "") -> UserError:
    shown = "a number this large" if isinstance(text, int) and text > _LARGEST else repr(text)
    shown = shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "..."
    article = "an" if kind[0] in "aei" else "a"
    return UserError(f"{shown} is not {article} {kind}{': ' * bool(why)}{why}; write it like {example}")

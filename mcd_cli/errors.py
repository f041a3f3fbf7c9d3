"""What can go wrong, as the user sees it: one line, what is wrong and what to do, and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 2000  # characters of a message; a file may hold a name of any length


class McdError(Exception):
    """A failure that is told in one line; `exit_code` is what the shell sees.

    Names out of files and folders stand in messages, so whatever a terminal would obey is written as an escape.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text with line ends, control characters and lone surrogates escaped, its middle left out where too long."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: object) -> str:
    """What somebody else's exception says, on one line; its type where it says nothing."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_problem(error: ValidationError) -> tuple[str, str]:
    """Where the first thing wrong stands (`students[1].macs`, empty for the whole) and what is wrong with it."""
    problem = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    is_scalar = isinstance(value, str | int | float) or value is None
    shown = f", got {value!r}" if is_scalar and problem["type"] != "json_invalid" else ""
    return place, message[0].lower() + message[1:] + shown


class RunFailed(McdError):
    """The run failed through us or the machine: NaN, disk, memory, network, a lost worker."""


class UserError(McdError):
    """The user's input is wrong: a name, a value, a file, a folder."""

    exit_code = 2


class NothingFits(McdError):
    """No student fits the budget."""

    exit_code = 3


class GateRefused(McdError):
    """A gate refused: the export differs from the model, the teacher is near chance."""

    exit_code = 4


class Interrupted(McdError):
    """Stopped by a signal; the state is saved and the message holds the resume command."""

    exit_code = 130


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """An unknown name, with the nearest known ones offered (or all of them when none is near)."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return UserError(f"unknown {kind} {name!r}; {hint}")

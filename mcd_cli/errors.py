"""Errors as the user sees them: one line that says what is wrong and what to do, and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LONGEST = 2000  # characters in a message; names quoted from a file can have any length

MAX_LISTED = 9  # known names in a message


class McdError(Exception):
    """Base class of every error that mcd raises on purpose: a one-line message and the process's `exit_code`.

    Messages quote names found in files and folders, so control characters are escaped before they reach a terminal.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """The text with line breaks, control characters and lone surrogates escaped; the middle of a long text is cut."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 3 // 4]} ... {text[-LONGEST // 4 :]}"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def reason_of(error: object) -> str:
    """The message of another library's exception, on one line; its type if it has no message."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def first_problem(error: ValidationError) -> tuple[str, str]:
    """The place of the first problem (`students[1].macs`; empty for the whole) and what is wrong there."""
    problem = error.errors(include_url=False)[0]
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
    message, value = problem["msg"].removeprefix("Value error, "), problem["input"]
    is_scalar = isinstance(value, str | int | float) or value is None
    shown = f", got {value!r}" if is_scalar and problem["type"] != "json_invalid" else ""
    return place, message[0].lower() + message[1:] + shown


class RunFailed(McdError):
    """The run failed although the input was valid: NaN, a full disk, memory, the network, a lost worker process."""


class UserError(McdError):
    """The user's input is wrong: a name, a value, a file or a folder."""

    exit_code = 2


class NothingFits(McdError):
    """No student fits the budget; the message names the nearest miss."""

    exit_code = 3


class GateRefused(McdError):
    """A check failed: the exported file differs from the model, or the teacher is near chance."""

    exit_code = 4


class Interrupted(McdError):
    """A signal stopped the run; its state is saved and the message gives the command that resumes it."""

    exit_code = 130


def unknown(kind: str, name: str, choices: Iterable[str]) -> UserError:
    """A UserError for an unknown name; it suggests the nearest known names, or a few of them when none is near."""
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif len(known) <= MAX_LISTED:
        hint = f"known: {', '.join(known)}"
    else:
        hint = f"there are {len(known)}, such as {', '.join(difflib.get_close_matches(name, known, n=3, cutoff=0))}"
    return UserError(f"unknown {kind} {name!r}; {hint}")

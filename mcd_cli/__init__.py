"""Distil an image classifier into a ladder of small students, then choose and run one.

`mcd distill` and the other commands are functions, too, and Python uses what a run leaves behind:

    from mcd_cli import NothingFits, distill, export, load_ladder

    ladder = distill(dataset="digits", epochs=10)  # or load_ladder("runs/numbers-mc-distil-1")
    export(ladder)
    try:
        student = ladder.select(max_macs="1M", min_accuracy="90%")  # the most accurate one within both limits
    except NothingFits as error:
        raise SystemExit(f"{error}")  # names the nearest miss
    model = student.load()  # a torch module: RGB float32 [n, 3, H, W] in [0, 1] → logits [n, C]

    session = ladder.session(student.name)  # its ONNX file in onnxruntime, after `mcd export`; no torch
    session.predict("digit.png", top=3)

Every error that mcd raises on purpose is an `McdError` whose message is one line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcd_cli.api import compare, distill, export, register_architecture, register_dataset
    from mcd_cli.errors import GateRefused, Interrupted, McdError, NothingFits, RunFailed, UserError
    from mcd_cli.ladder.manifest import Ladder, load_ladder
    from mcd_cli.ladder.session import Session

__version__ = "0.1.0"
__all__ = [
    "GateRefused",
    "Interrupted",
    "Ladder",
    "McdError",
    "NothingFits",
    "RunFailed",
    "Session",
    "UserError",
    "compare",
    "distill",
    "export",
    "load_ladder",
    "register_architecture",
    "register_dataset",
]

_ERRORS = ("GateRefused", "Interrupted", "McdError", "NothingFits", "RunFailed", "UserError")
_COMMANDS = ("compare", "distill", "export", "register_architecture", "register_dataset")
_HOMES = (
    dict.fromkeys(_ERRORS, "mcd_cli.errors")
    | dict.fromkeys(_COMMANDS, "mcd_cli.api")
    | {
        "Ladder": "mcd_cli.ladder.manifest",
        "Session": "mcd_cli.ladder.session",
        "load_ladder": "mcd_cli.ladder.manifest",
    }
)


def __getattr__(name: str) -> Any:
    """A public name is imported on first use, so that `import mcd_cli` itself costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

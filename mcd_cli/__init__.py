"""mcd: a ladder of small students from one teacher."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["load_ladder"]


def __getattr__(name: str) -> Any:
    """`load_ladder` is imported on first use, so that `import mcd_cli` stays free."""
    if name == "load_ladder":
        from mcd_cli.ladder.manifest import load_ladder

        return load_ladder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

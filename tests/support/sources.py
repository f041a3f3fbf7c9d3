"""The modules of the package and their files."""

from __future__ import annotations

from pathlib import Path

import mcd_cli

PACKAGE = Path(mcd_cli.__file__).parent


def modules() -> dict[str, Path]:
    """Name below the package -> file."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = path
    return {name: path for name, path in found.items() if name != "__init__"}


MODULES = modules()

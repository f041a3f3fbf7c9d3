"""Lookup tables from a name to "module:attribute", imported on demand and free of torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mcd_cli.errors import unknown


class Table(Mapping[str, str]):
    """The methods, architectures or data sets by name. Reading the table imports nothing; `load` imports one row."""

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> str:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def check(self, name: str) -> str:
        """The name, if the table has it; otherwise raises UserError with the nearest names."""
        if name not in self._rows:
            raise unknown(self.kind, name, self._rows)
        return name

    def load(self, name: str) -> Any:
        """Import and return the attribute that the row names. Raises UserError for an unknown name."""
        module, attribute = self._rows[self.check(name)].split(":")
        return getattr(import_module(module), attribute)

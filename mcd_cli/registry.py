"""Families of things known by name: torch-free tables, name -> "module:attribute"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module
from typing import Any

from mcd_cli.errors import unknown


class Table(Mapping[str, str]):
    """One family (methods, architectures, data sets). Reading it imports nothing; `load` imports one row."""

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
        """The name itself; raises UserError with the nearest names when it is not in the table."""
        if name not in self._rows:
            raise unknown(self.kind, name, self._rows)
        return name

    def load(self, name: str) -> Any:
        """The attribute that the row points to."""
        module, attribute = self._rows[self.check(name)].split(":")
        return getattr(import_module(module), attribute)

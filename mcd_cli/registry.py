"""Tables of named things: torch-free rows, each with a "module:attribute" that is imported on demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from mcd_cli.errors import unknown


@dataclass(frozen=True)
class Row:
    """target: "module:attribute", imported by `Table.load`; or the thing itself."""

    target: str | Callable[..., Any]


R = TypeVar("R", bound=Row)


class Table(Mapping[str, R], Generic[R]):
    """The methods, architectures or data sets by name. Reading the table imports nothing; `load` imports one target."""

    def __init__(self, kind: str, rows: Mapping[str, R]) -> None:
        self.kind = kind
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> R:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def register(self, name: str, row: R) -> None:
        """Add a row, for example a method of your own; raises ValueError if the name is taken."""
        if name in self._rows:
            raise ValueError(f"{self.kind} {name!r} is registered already")
        self._rows[name] = row

    def unregister(self, name: str) -> None:
        """Remove a row."""
        del self._rows[name]

    def check(self, name: str) -> str:
        """The name, if the table has it; otherwise raises UserError with the nearest names."""
        if name not in self._rows:
            raise unknown(self.kind, name, self._rows)
        return name

    def load(self, name: str) -> Any:
        """The row's target, imported if necessary. Raises UserError for an unknown name."""
        target = self._rows[self.check(name)].target
        if not isinstance(target, str):
            return target
        module, attribute = target.split(":")
        return getattr(import_module(module), attribute)

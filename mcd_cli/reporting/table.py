"""A table of text, and how it is written as Markdown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grid:
    """A table: its first column is a name, the others are figures; best: the places (row, column) printed bold."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    title: str = ""
    best: frozenset[tuple[int, int]] = frozenset()

    def markdown(self) -> str:
        """GitHub-flavoured Markdown."""
        shown = [
            [f"**{cell}**" if (i, j) in self.best else cell.replace("|", "\\|") for j, cell in enumerate(row)]
            for i, row in enumerate(self.rows)
        ]
        lines = [self.columns, ["---", *["---:"] * (len(self.columns) - 1)], *shown]
        heading = [f"**{self.title}**", ""] if self.title else []
        return "\n".join([*heading, *(f"| {' | '.join(cells)} |" for cells in lines)])

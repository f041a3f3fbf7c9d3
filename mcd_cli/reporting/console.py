"""Where commands print: results to stdout, everything else to stderr; plain and untruncated when piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

JSON_SCHEMA = 1
"""Of the documents of `--json`, unless they have their own: keys are added, and none changes without another number."""
_PIPED_WIDTH = 10_000  # nothing is wrapped or cut if a program reads the output


def results() -> Console:
    return _console(stderr=False)


def talk() -> Console:
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else _PIPED_WIDTH
    return Console(stderr=stderr, width=width, markup=False, highlight=False, emoji=False)


def table(console: Console, *columns: str, title: str | None = None) -> Table:
    """An empty table: the first column is a name, the others are numbers; plain if the output is not a terminal."""
    drawn = Table(
        box=box.SIMPLE_HEAD if console.is_terminal else None,
        pad_edge=False,
        collapse_padding=True,
        title_justify="left",
    )
    drawn.title = None if title is None else Text(title)
    for i, column in enumerate(columns):
        drawn.add_column(Text(column), justify="right" if i else "left", no_wrap=True)
    return drawn


def table_that_fits(
    console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], gives_way: Sequence[str], bold: int = -1
) -> Table:
    """A `table` with its rows. Too wide for the console, it loses columns in the order of `gives_way`, never a digit.

    bold: the row printed bold. If nothing is left to lose, the names in the first column are broken.
    """
    lost: set[str] = set()
    for losing in (*gives_way, None):
        shown = [i for i, column in enumerate(columns) if column not in lost]
        drawn = table(console, *(columns[i] for i in shown))
        for number, row in enumerate(rows):
            drawn.add_row(*(row[i] for i in shown), style="bold" if number == bold else None)
        if console.measure(drawn, options=console.options.update(max_width=_PIPED_WIDTH)).maximum <= console.width:
            return drawn
        lost.add(losing or "")
    drawn.columns[0].no_wrap, drawn.columns[0].overflow = False, "fold"
    return drawn


def print_json(document: Mapping[str, Any]) -> None:
    """Print the one JSON document of `--json`, with its `schema` first."""
    sys.stdout.write(json.dumps({"schema": JSON_SCHEMA, **document}, indent=2, allow_nan=False) + "\n")

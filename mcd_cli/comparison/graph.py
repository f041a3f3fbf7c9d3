"""A comparison as a graph of nodes: teacher → warm starts of a seed → cells; and kd's cell → the chains of its seed.

Any number of processes may work on the same graph at once. Each takes nodes that are ready and that nobody else holds,
so nothing is trained twice and nobody is refused; it waits only when there is nothing left to take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mcd_cli.comparison.claims import claim
from mcd_cli.engine.events import InfoMessage, Listener
from mcd_cli.errors import unknown

POLL_SECONDS = 0.5

Task = Callable[[], None]


@dataclass(frozen=True)
class Node:
    """One run. home: its comparison's folder; needs: the nodes that must be finished first; title: for people."""

    name: str
    title: str
    home: Path
    needs: tuple[str, ...]
    is_finished: Callable[[], bool]
    run: Task

    @property
    def key(self) -> str:
        """Its name within its comparison."""
        return self.name.rpartition("/")[2]


class Graph:
    """Nodes in an order in which they can be run one after another."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self.nodes = {node.name: node for node in nodes}

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def with_needs(self, name: str) -> Graph:
        """The node and all that it needs. Raises UserError for an unknown name."""
        if name not in self.nodes:
            raise unknown("node", name, self.nodes)
        wanted = {name}
        for node in reversed(self.nodes.values()):
            if node.name in wanted:
                wanted.update(node.needs)
        return Graph([node for node in self if node.name in wanted])

    def complete(self, emit: Listener) -> None:
        """Run all nodes that are not finished, sharing them with the other processes that do the same."""
        total = len(todo := self.unfinished())
        is_waiting = False
        while todo:
            if any(self._take(node, emit, f"{total - len(todo) + 1} of {total}") for node in todo):
                is_waiting = False
            elif len(left := self.unfinished()) == len(todo):
                if not is_waiting:
                    emit(InfoMessage(f"waiting for another process: {', '.join(node.title for node in left[:3])}"))
                is_waiting = True
                time.sleep(POLL_SECONDS)
            todo = self.unfinished()

    def unfinished(self) -> list[Node]:
        return [node for node in self if not node.is_finished()]

    def _take(self, node: Node, emit: Listener, count: str) -> bool:
        """Run the node unless it has to wait, another process holds it, or one has just finished it."""
        if any(name in self.nodes and not self.nodes[name].is_finished() for name in node.needs):
            return False
        with claim(node.home, node.key) as is_mine:
            if not is_mine or node.is_finished():
                return False
            emit(InfoMessage(f"{count}: {node.title}"))
            node.run()
        return True

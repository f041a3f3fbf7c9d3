"""A comparison on a real Ray cluster of two nodes, of which one is lost: to the bytes of one process."""

from __future__ import annotations

import re
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from mcd_cli.ladder.folder import METRICS, PREDICTIONS
from support.commands import mcd

ray = pytest.importorskip("ray", reason="the extra `ray` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own


@pytest.mark.timeout(400)
def test_a_lost_node_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """kd and ce on two seeds; the node that works on a cell is removed in its midst. All is trained once."""
    from ray.cluster_utils import Cluster

    args = ["--recipe", "tiny.toml", "--methods", "kd,ce", "--seeds", "0-1", "--threads", "1"]
    assert mcd(monkeypatch, "compare", *args, "--out", "alone") == 0
    cluster = Cluster()
    cluster.add_node(num_cpus=0)  # the head; it outlives the test
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    lost = threading.Thread(target=_lose, args=(cluster, nodes[0], place / "nodes"), daemon=True)
    lost.start()
    try:
        assert mcd(monkeypatch, "compare", *args, "--out", "nodes", "--on", "ray") == 0
    finally:
        cluster.shutdown()
    lost.join(timeout=1)
    assert not lost.is_alive()
    cells = {path.parent.name: path for path in (place / "alone").glob(f"cells/*/{PREDICTIONS}")}
    assert len(cells) == 4
    for name, path in cells.items():
        assert (place / "nodes" / "cells" / name / PREDICTIONS).read_bytes() == path.read_bytes()
    logs = {path.stem: path.read_text() for path in (place / "nodes" / "logs").iterdir()}
    started = [title for log in logs.values() for title in re.findall(r"^\d+ of \d+: (.+)$", log, re.MULTILINE)]
    assert started.count("teacher") == 1
    assert len(started) > 7  # the lost cell was started twice
    assert len([log for log in logs if log.startswith("warm-start")]) == 2
    tables = [
        (place / folder / "comparison.md").read_text().split("Gain of the mean")[0] for folder in ("alone", "nodes")
    ]
    assert tables[0] == tables[1]


def _lose(cluster: Any, node: Any, comparison: Path) -> None:
    """Remove the node as soon as it has trained an epoch of a cell."""
    raylet = node.all_processes["raylet"][0].process.pid
    while not any(
        path.stat().st_size for name in _works_on(raylet) for path in comparison.glob(f"cells/{name}/{METRICS}")
    ):
        time.sleep(0.05)
    cluster.remove_node(node, allow_graceful=False)


def _works_on(raylet: int) -> list[str]:
    """The nodes of the comparison whose processes are grandchildren of this process (Linux)."""
    names = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            arguments = (folder / "cmdline").read_bytes().decode().split("\0")
            if "--only" in arguments and _parent(_parent(int(folder.name))) == raylet:
                names.append(arguments[arguments.index("--only") + 1])
    return names


def _parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])

"""A comparison as a graph: its nodes, one node as a process of its own, several processes on one folder, claims."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mcd_cli.comparison import claims
from mcd_cli.comparison.claims import claim
from mcd_cli.comparison.graph import Graph, Node
from mcd_cli.comparison.plan import Plan
from mcd_cli.comparison.runner import Comparison
from mcd_cli.recipe.overlays import find_contenders
from support.commands import mcd
from support.runs import tiny_recipe

HOLD = """
import sys, time
from pathlib import Path
from mcd_cli.comparison.claims import claim
with claim(Path(sys.argv[1]), "kd-seed0") as held:
    print(held, flush=True)
    time.sleep(60)
"""


def plan_of(*methods: str, seeds: tuple[int, ...] = (0,)) -> Plan:
    return Plan(tiny_recipe(), tuple(one for name in methods for one in find_contenders(name)), seeds)


def nodes_of(plan: Plan, folder: Path) -> dict[str, Node]:
    def engine(*args: object) -> None:
        raise AssertionError("planning trains nothing")

    return {node.name: node for node in Comparison(plan, folder, engine, print).nodes()}  # type: ignore[arg-type]


def test_what_needs_what(tmp_path: Path) -> None:
    nodes = nodes_of(plan_of("takd", "kd", "dgkd", "mc-distil", seeds=(0, 1)), tmp_path)
    cells = [f"{method}-seed{seed}" for seed in (0, 1) for method in ("kd", "takd", "dgkd", "mc-distil")]
    warm = [name for name in nodes if name.startswith("warm-start")]
    assert list(nodes) == ["teacher", warm[0], *cells[:4], warm[1], *cells[4:]]
    assert [name.rpartition("-")[0] for name in warm] == ["warm-start-seed0", "warm-start-seed1"]
    for seed in (0, 1):
        needed = ("teacher", warm[seed])
        assert nodes[f"kd-seed{seed}"].needs == nodes[f"mc-distil-seed{seed}"].needs == needed
        assert nodes[f"takd-seed{seed}"].needs == nodes[f"dgkd-seed{seed}"].needs == (*needed, f"kd-seed{seed}")
    graph = Graph(list(nodes.values()))
    assert [node.name for node in graph.with_needs("dgkd-seed1")] == ["teacher", warm[1], "kd-seed1", "dgkd-seed1"]


def test_a_shell_loop_runs_a_comparison(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the worst order, so that each node trains what it needs; to the bits of one process."""
    args = ["--recipe", "tiny.toml", "--methods", "kd,takd", "--seeds", "0"]
    assert mcd(monkeypatch, "compare", *args, "--out", "loop", "--nodes") == 0
    names = capsys.readouterr().out.split()
    assert [name.partition("-seed")[0] for name in names] == ["teacher", "warm-start", "kd", "takd"]
    assert sorted(path.name for path in (place / "loop").iterdir()) == ["comparison.toml", "locks"]
    started = ""
    for name in reversed(names):
        assert mcd(monkeypatch, "compare", "--resume", "loop", "--only", name, "--threads", "1") == 0
        said = capsys.readouterr()
        assert said.out == ""
        assert f"{name} is finished" in said.err
        started += said.err
    assert (
        started.count("1 of 4: teacher") == started.count("warm start, seed 0") == started.count("kd, seed 0") - 1 == 1
    )
    assert mcd(monkeypatch, "compare", "--resume", "loop", "--nodes", "--json") == 0
    assert all(node["finished"] for node in json.loads(capsys.readouterr().out)["nodes"])
    assert mcd(monkeypatch, "compare", "--resume", "loop", "--json", "--threads", "1") == 0
    capsys.readouterr()
    assert mcd(monkeypatch, "compare", *args, "--out", "whole", "--threads", "1") == 0
    for cell in ("kd-seed0", "takd-seed0"):
        files = [place / folder / "cells" / cell / "predictions.safetensors" for folder in ("loop", "whole")]
        assert files[0].read_bytes() == files[1].read_bytes()
    assert mcd(monkeypatch, "compare", "--resume", "loop", "--only", "kd-seed7") == 2
    assert "unknown node 'kd-seed7'; did you mean kd-seed0" in capsys.readouterr().err


def test_two_processes_share_a_comparison(place: Path) -> None:
    """Each run is started once, by either; both print the tables. (benchmarks/races.py does it 20 times.)"""
    command = [sys.executable, "-m", "mcd_cli", "compare", "--threads", "1"]
    plan = ["--recipe", "tiny.toml", "--methods", "kd,ce", "--seeds", "0"]
    subprocess.run([*command, *plan, "--out", "both", "--nodes"], check=True, capture_output=True)
    pair = [
        subprocess.Popen([*command, "--resume", "both"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300) for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    started = [title for _, err in said for title in re.findall(r"^\d+ of \d+: (.+)$", err, re.MULTILINE)]
    assert sorted(started) == ["ce, seed 0", "kd, seed 0", "teacher", "warm start, seed 0"]
    assert all("Test accuracy (%)" in out for out, _ in said)


def test_a_claim_ends_with_its_process(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    with claim(tmp_path, "kd-seed0") as is_mine, claim(tmp_path, "kd-seed1") as another:
        assert (is_mine, another) == (False, True)
    holder.kill()
    holder.wait()
    holder.stdout.close()
    with claim(tmp_path, "kd-seed0") as is_mine:
        assert is_mine


def test_a_lease_of_another_machine_is_respected_until_it_is_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another machine left: a lease that nobody renews. It is watched for the lease's length, then taken over."""
    monkeypatch.setattr(claims, "LEASE_SECONDS", 1.0)
    with claim(tmp_path, "kd-seed0") as is_mine:
        assert is_mine
        lease = tmp_path / "locks" / "kd-seed0.lease"
        content = lease.read_text()
    (host,) = (line for line in content.splitlines() if line.startswith("host="))
    lease.write_text(content.replace(host, "host=elsewhere"))
    since = time.monotonic()
    with claim(tmp_path, "kd-seed0") as is_mine:
        assert not is_mine
    with claim(tmp_path, "kd-seed0", wait=True) as is_mine:
        assert is_mine
    assert time.monotonic() - since > 0.9


def test_methods_and_seeds_are_added(tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    plan_of("kd", "ce", seeds=(0, 1)).add_to(folder)
    whole = plan_of("dist", "kd", seeds=(2,)).add_to(folder)
    assert [contender.name for contender in whole.contenders] == ["kd", "ce", "dist"]
    assert whole.seeds == (0, 1, 2)
    assert Plan.load(folder) == whole


def test_several_recipes_are_one_command(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy("tiny.toml", "other.toml")
    args = ["--recipe", "tiny.toml,other.toml", "--set", "split_seed=3", "--methods", "ce", "--seeds", "0"]
    assert mcd(monkeypatch, "compare", *args, "--threads", "1", "--out", "table") == 0
    said = capsys.readouterr()
    assert said.out.count("Test accuracy (%)") == 2
    assert said.out.startswith("tiny\n")
    assert mcd(monkeypatch, "compare", "--resume", "table", "--nodes") == 0
    names = capsys.readouterr().out.split()
    assert [name for name in names if "warm" not in name] == [
        "other/teacher",
        "other/ce-seed0",
        "tiny/teacher",
        "tiny/ce-seed0",
    ]
    assert mcd(monkeypatch, "compare", "--resume", "table", "--json", "--threads", "1") == 0
    parts = json.loads(capsys.readouterr().out)["comparisons"]
    assert {part: content["folder"] for part, content in parts.items()} == {
        "tiny": "table/tiny",
        "other": "table/other",
    }


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--recipe tiny.toml,tiny.toml --methods ce", "--recipe names tiny twice"),
        ("--recipe tiny.toml,tny --methods ce", "tny"),
        ("--recipe tiny.toml --only kd-seed0", "--only is for a planned comparison"),
    ],
)
def test_mistakes_are_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    assert mcd(monkeypatch, "compare", *args.split()) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert len([line for line in said.err.splitlines() if line.startswith("mcd: ")]) == 1
    assert [path.name for path in place.iterdir()] == ["tiny.toml"]

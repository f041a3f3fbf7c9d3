"""Hostile files through the command line: one line on stderr, the right exit code, nothing left; bombs, measured."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from mcd_cli.errors import Interrupted, UserError
from support import INSTALLED, TESTS
from support.bombs import BOMBS
from support.commands import refused
from support.hostile import Evil, promise
from support.manifests import MANIFEST, TIMING
from support.runs import go_on, signal_at, tiny_recipe, train

PEAK = 1500  # MB of a process that reads bombs; 600 of them are Python with torch


def evil_archive(place: Path) -> None:
    with tarfile.open(place / "cifar-10-python.tar.gz", "w:gz") as archive:
        content = pickle.dumps({b"data": Evil()}, protocol=2)
        info = tarfile.TarInfo("cifar-10-batches-py/../../data_batch_1")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))


def evil_batch(place: Path) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (place / name).write_bytes(pickle.dumps({b"data": Evil()}, protocol=2))


HUGE_TIMING = {**TIMING, "p99_ms": 10**400}


def run_of_others(place: Path, **changes: object) -> None:
    document = json.loads(json.dumps(MANIFEST))
    document["students"][0].update(changes)
    (place / "run").mkdir()
    (place / "run/ladder.json").write_text(json.dumps(document))
    (place / "run/recipe.toml").write_text(tiny_recipe().to_toml())


CASES: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "long key": (lambda p: (p / "r.toml").write_text("a" + ".a" * 20_000), "distill --recipe r.toml", "dots"),
    "loop": (lambda p: (p / "r.toml").write_text('extends = "./r"'), "distill --recipe ./r.toml", "extends itself"),
    "digits without end": (lambda p: None, "distill --set seed=" + "9" * 5000, "is too long for a value"),
    "home of nobody": (lambda p: None, "distill --dataset ~no-such-user/x", "is not a valid path"),
    "long name": (lambda p: None, "distill --dataset " + "x" * 5000, "is not a valid path"),
    "long student": (lambda p: None, f"distill --students {'x' * 300}=resnet10-s", "is not a valid student name"),
    "control characters": (lambda p: None, "distill --dataset \x1b[31m", r"\x1b[31m"),
    "pipe as teacher": (lambda p: os.mkfifo(p / "t.pt"), "distill --teacher t.pt", "not a regular file"),
    "pickled code": (lambda p: torch.save(Evil(), p / "t.pt"), "distill --teacher t.pt", "not weights"),
    "code in a batch": (evil_batch, "distill --dataset cifar10 --data-root .", "is not safe to read"),
    "archive that leaves": (evil_archive, "distill --dataset cifar10 --data-root .", "is outside of the target folder"),
    "select: count": (lambda p: run_of_others(p, macs=10**400), "select --run run", "must be at most"),
    "select: time": (lambda p: run_of_others(p, latency={"cpu": [HUGE_TIMING]}), "select --run run", "p99_ms"),
    "export": (lambda p: run_of_others(p, weights="../../etc/passwd"), "export --run run", "leaves the run's folder"),
    "resume: no sizes": (lambda p: run_of_others(p, macs=-1), "distill --resume run", "above 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_hostile_files_end_in_one_line(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, args, words = CASES[case]
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run/metrics.jsonl").touch()
    line = refused(monkeypatch, capsys, tmp_path, *args.split())
    assert words in line
    assert line.isprintable()
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_another_run(tmp_path: Path) -> None:
    """Whole by its hash, but not what this run wrote: parts missing, of other shapes, with other counters."""
    recipe = tiny_recipe(epochs=1, students=["resnet10-xxxs"], warm_start={"epochs": 0}, teacher={"epochs": 1})
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "run", signal_at("distill", 2))
    folder = tmp_path / "run/checkpoint"
    (kept,) = folder.glob("teacher-*")
    newest = max(folder.glob("state-*"))
    with safe_open(newest, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        position = json.loads(file.metadata()["position"])
    for path in folder.glob("state-*"):
        path.unlink()
    changed: list[tuple[dict[str, torch.Tensor], dict[str, object]]] = [
        ({}, {}),
        (tensors, {**position, "identity": 3}),
        (tensors, {**position, "kept": ["../../etc/passwd"]}),
        (tensors, {**position, "kept": [f"../checkpoint/{kept.name}"]}),
        (tensors, {**position, "kept": ["a" * 300]}),
        (tensors, {**position, "metrics": -5}),
        (tensors, {**position, "trainer": {**position["trainer"], "number": "x"}}),
        (tensors, {**position, "trainer": {**position["trainer"], "number": -1}}),
        ({name: value for name, value in tensors.items() if "meters" not in name}, position),
        ({name: torch.zeros(3) for name in tensors}, position),
    ]
    for parts, where in changed:
        content = save(parts, metadata={"position": json.dumps(where)})
        path = folder / f"state-000000009-{hashlib.sha256(content).hexdigest()}.safetensors"
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"another folder|is not the one") as error:
            go_on(tmp_path / "run")
        assert str(error.value).isprintable()
        path.unlink()
    assert (tmp_path / "run/metrics.jsonl").stat().st_size > 0


def test_the_watch_sees_what_it_must(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`promise` fails for a reader that runs, writes elsewhere, raises something else, or speaks in two lines."""

    class TwoLines(UserError):
        def __str__(self) -> str:
            return "a\nb"

    def raise_(error: Exception) -> None:
        raise error

    bad: list[Callable[[], object]] = [
        lambda: subprocess.run(["true"]),
        lambda: os.mkdir(tmp_path / "x"),
        lambda: pickle.loads(pickle.dumps(Evil())),
        lambda: (tmp_path / "y").write_text("x"),
        lambda: raise_(TwoLines("x")),
    ]
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path)
    for read in bad:
        with pytest.raises(AssertionError):
            promise("the watch", read, tmp_path / "inside")
    with pytest.raises(KeyError):
        promise("the watch", lambda: {}["x"], tmp_path)
    assert promise("the watch", lambda: (tmp_path / "inside/z").write_text("x"), tmp_path / "inside") == 1


QUICK = ["tar header", "pickle memo", "pickle bytes", "pickle lists", "safetensors", "onnx"]  # quick to make


def test_bombs(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(INSTALLED), str(TESTS)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "support.bombs", str(tmp_path), *QUICK]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    lines = done.stdout.splitlines()
    for name, line in zip(QUICK, lines, strict=True):
        assert BOMBS[name][1] in line
        assert int(line.split("peak ")[1].split()[0]) < PEAK
    assert done.stderr == ""


@pytest.mark.parametrize("command", ["export --run run", "report run"])
def test_nothing_is_written_through_a_link(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_of_others(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/checkpoint").symlink_to(tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    assert "'checkpoint' in run is a link" in refused(monkeypatch, capsys, tmp_path, *command.split())
    assert not list((tmp_path / "elsewhere").iterdir())

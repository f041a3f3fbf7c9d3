"""Latencies: measured in onnxruntime, stored by hardware, read by select without onnxruntime."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from mcd_cli.cli.profile import profile
from mcd_cli.errors import UserError
from mcd_cli.formats.latency import parse_batches
from mcd_cli.ladder.latency import hardware_key, measure, remembered
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.ladder.schema import Timing
from support import INSTALLED
from support.runs import timing

NAME = "resnet10-xxs"


def test_measure(deployed: Path) -> None:
    """The sum of all calls fits into the time that passed; a larger batch takes longer."""
    file = deployed / f"exports/{NAME}.onnx"
    begun = time.perf_counter()
    one = measure({"onnx": file}, runs=200)["onnx"]
    passed = 1000 * (time.perf_counter() - begun)
    many = measure({"onnx": file.read_bytes()}, batch=64, runs=200)["onnx"]
    assert (one.batch, one.warmup, one.runs, many.batch) == (1, 20, 200, 64)
    assert 0 < one.p50_ms <= one.p90_ms <= one.p99_ms
    assert 110 * one.p50_ms < passed  # half of the timed calls and of the warm-up took the median or longer
    assert many.p50_ms > 4 * one.p50_ms


def test_the_hardware_is_named() -> None:
    assert hardware_key(1).endswith(f", 1 thread, onnxruntime {version('onnxruntime')}")
    assert ", 3 threads, " in hardware_key(3)


def test_newer_figures_replace_older_ones(deployed: Path) -> None:
    student = load_ladder(deployed).student(NAME)
    new = Timing(**timing(7.0))
    told = remembered(student, [new], hardware_key(1))[hardware_key(1)]
    assert [(t.format, t.p50_ms == 7.0) for t in told] == [("onnx", True), ("int8", False)]
    assert set(remembered(student, [new], "elsewhere")) == {hardware_key(1), "elsewhere"}


def test_profile_keeps_what_it_measures(deployed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(deployed, run)
    profile(run=run, latency=True, batch="1,4", json_output=True)
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["latency"]["hardware"] == hardware_key(1)
    assert (row["bytes"], row["bytes_of"]) == ((run / f"exports/{NAME}.onnx").stat().st_size, "onnx")  # as in select
    assert [(t["format"], t["batch"]) for t in row["latency"]["timings"]] == [
        ("onnx", 1), ("int8", 1), ("onnx", 4), ("int8", 4)
    ]  # fmt: skip
    kept = load_ladder(run).student(NAME).latency[hardware_key(1)]
    assert len(kept) == 4
    limit = 1.1 * max(t.p99_ms for t in kept if t.batch == 1)
    code = (
        "import sys; from mcd_cli.cli.select import select;"
        f"select({str(run)!r}, max_latency={limit}, percentile='p99');"
        "print([name for name in ('torch', 'numpy', 'onnxruntime') if name in sys.modules])"
    )
    package = str(INSTALLED)
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r}); {code}"]
    out = subprocess.run(command, capture_output=True, text=True, check=True)
    assert out.stdout.splitlines()[1] == "[]"
    assert "latency: p99 of one image on" in out.stderr


def test_architectures_too(capsys: pytest.CaptureFixture[str]) -> None:
    profile(["resnet10-xxxs"], input_shape="3x16x16", classes=10, latency=True)
    said = capsys.readouterr()
    (row,) = [line.split() for line in said.out.splitlines() if line.startswith("resnet10-xxxs  ")][-1:]
    assert row[1] == "1"
    assert "20 warm-up and 200 timed calls" in said.err


@pytest.mark.parametrize("text", ["0", "", "1,,2", "1.5", "-1", "5000", "x"])
def test_batches(text: str) -> None:
    assert (parse_batches("8,1,64"), parse_batches("8")) == ((1, 8, 64), (1, 8))
    with pytest.raises(UserError, match="--batch"):
        parse_batches(text)

"""int8: the file's content, its check, how select chooses it, how it is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mcd_cli.cli.export import export
from mcd_cli.cli.select import select
from mcd_cli.data import load_dataset
from mcd_cli.errors import GateRefused, UserError
from mcd_cli.formats import int8
from mcd_cli.formats.int8 import Int8Gate, speed
from mcd_cli.formats.job import kept_exports
from mcd_cli.ladder.budget import Budget
from mcd_cli.ladder.latency import hardware_key
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.ladder.schema import Timing
from support.runs import timing

NAME = "resnet10-xxs"


def test_the_file(deployed: Path) -> None:
    """8-bit weights with a scale per channel, calibrated activations; metadata as in float32; the accuracy told."""
    entry = load_ladder(deployed).student(NAME)
    document = onnx.load(deployed / entry.exports["int8"])
    kinds = [node.op_type for node in document.graph.node]
    assert kinds.count("QuantizeLinear") > 10
    assert "BatchNormalization" not in kinds
    weights = [t for t in document.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 4]
    assert len(weights) == kinds.count("Conv")
    for tensor in weights:
        values = onnx.numpy_helper.to_array(tensor)
        assert -65 < values.min() < values.max() < 65
        assert (np.abs(values).max(axis=(1, 2, 3)) >= 63).all()  # every channel uses its own range
    float32 = onnx.load(deployed / entry.exports["onnx"])
    assert document.metadata_props == float32.metadata_props
    assert entry.exported["int8"].bytes == (deployed / entry.exports["int8"]).stat().st_size

    dataset = load_dataset("digits")
    session = onnxruntime.InferenceSession(deployed / entry.exports["int8"], providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": dataset.images[dataset.val].numpy().astype(np.float32) / 255})
    right = (logits.argmax(axis=1) == dataset.labels[dataset.val].numpy()).mean()
    assert entry.exported["int8"].val == pytest.approx(right)
    assert entry.exported["int8"].num_val == len(dataset.val)
    assert right > 0.5  # it was judged on something
    assert {t.format for t in entry.latency[hardware_key(1)]} == {"onnx", "int8"}


def test_it_is_a_choice(deployed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = load_ladder(deployed).student(NAME).exported["int8"].bytes
    select(deployed, max_size=limit)
    said = capsys.readouterr()
    assert said.out == f"{NAME}.int8\n"
    assert "of ONNX" in said.err
    select(deployed, max_size=limit, print_="onnx", quiet=True)
    assert capsys.readouterr().out == f"{deployed}/exports/{NAME}.int8.onnx\n"
    select(deployed, print_="weights", quiet=True)
    assert capsys.readouterr().out == f"{deployed}/students/{NAME}.safetensors\n"
    ladder = load_ladder(deployed)
    assert [c.variant.name for c in ladder.explain(Budget()).candidates] == [NAME, f"{NAME}.int8"]
    assert ladder.select().load()(torch.rand(2, 3, 16, 16)).shape == (2, 10)  # of float32: int8 has no weights


def test_a_refusal_leaves_no_file(
    deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Calibrated on black images, which loses on any processor; the older, better file is removed, float32 stays."""
    run = tmp_path / "run"
    shutil.copytree(deployed, run)
    quantise = int8.quantise
    monkeypatch.setattr(int8, "quantise", lambda plain, calibration: quantise(plain, 0 * calibration))
    with pytest.raises(GateRefused, match=r"resnet10-xxs.int8.onnx: .* points lost, more than --max-drop 0"):
        export(str(run), students=[f"{NAME}.int8"], max_drop=0, force=True, json_output=True)
    document = json.loads(capsys.readouterr().out)
    assert [entry["format"] for entry in document["exports"]] == ["onnx"]
    assert len(document["refused"]) == 1
    assert [path.name for path in (run / "exports").iterdir()] == [f"{NAME}.onnx"]
    student = load_ladder(run).student(NAME)
    assert (list(student.exports), list(student.exported)) == (["onnx"], ["onnx"])
    with pytest.raises(UserError, match="not exported"):
        load_ladder(run).session(f"{NAME}.int8")


def test_what_is_there_and_right_is_not_written_again(
    deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(deployed, run)
    monkeypatch.setattr("mcd_cli.cli.export.load_training_data", lambda *args: pytest.fail("nothing is to be written"))
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    export(str(run), int8=True, max_drop=100)
    said = capsys.readouterr()
    assert said.out.splitlines() == [f"{run}/exports/{NAME}.onnx", f"{run}/exports/{NAME}.int8.onnx"]
    assert said.err == f"{NAME}: exported before, and unchanged; --force exports it again\n"
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    student = load_ladder(run).student(NAME)
    both = ["onnx", "int8"]
    assert [entry["format"] for entry in kept_exports(student, both, False, 1.0)] == both
    assert kept_exports(student, both, True, 1.0) == []  # not calibrated
    assert kept_exports(student, ["no-preprocess"], False, 1.0) == []
    lost = replace(student.exported["int8"], gate={"drop": 0.02}, num_val=100)
    worse = replace(student, exported=student.exported | {"int8": lost}).at(run, load_ladder(run).dataset)
    assert len(kept_exports(worse, both, False, 0.02)) == 2
    assert kept_exports(worse, both, False, 0.019) == []
    path = run / f"exports/{NAME}.onnx"
    path.write_bytes(path.read_bytes() + b"x")
    assert kept_exports(student, ["onnx"], False, 1.0) == []
    path.unlink()
    assert kept_exports(student, ["onnx"], False, 1.0) == []


@pytest.mark.parametrize(
    ("right", "passed"), [(250, True), (240, True), (239, False), (260, True)]
)  # of 1,000; float32 has 250; one point is ten images
def test_the_verdict(right: int, passed: bool) -> None:
    assert Int8Gate(250 / 1000, right / 1000, 1000, 0.01).passed is passed


def test_slower_is_called_slower() -> None:
    fast, slow = (Timing(**timing(ms)) for ms in (1.0, 1.5))
    assert "1.50 times as fast" in speed(slow, fast)
    assert "SLOWER, 1.50 times the time" in speed(fast, slow)

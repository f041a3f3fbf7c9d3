"""softmax(z / T): the same from torch, from a raw file and from one that divides by T itself; never twice."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from mcd_cli.cli.export import export
from mcd_cli.cli.predict import predict
from mcd_cli.data import load_dataset
from mcd_cli.errors import GateRefused, UserError
from mcd_cli.formats import onnx_file
from mcd_cli.ladder.manifest import load_ladder, update
from mcd_cli.ladder.session import open_session

NAME = "resnet10-xxs"
T = 2.5  # unlike what was fitted, so that one too many or too few is seen


def at_temperature(run: Path, temperature: float) -> Path:
    def change(student: Any) -> Any:
        return replace(student, calibration=replace(student.calibration, temperature=temperature))

    update(run, change)
    return run


@pytest.fixture(scope="module")
def runs(deployed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run at T = 2.5: not exported, exported raw, and exported calibrated."""
    place = tmp_path_factory.mktemp("calibrated")
    made = {}
    for name in ("torch", "raw", "calibrated"):
        made[name] = at_temperature(Path(shutil.copytree(deployed, place / name)), T)
        shutil.rmtree(made[name] / "exports")
        if name != "torch":
            export(str(made[name]), int8=True, max_drop=100, calibrated=name == "calibrated")
    return made


@pytest.fixture(scope="module")
def images() -> np.ndarray[Any, np.dtype[np.float32]]:
    dataset = load_dataset("digits")
    return dataset.images[dataset.test[:70]].numpy().astype(np.float32) / np.float32(255)


def logits(path: Path, images: Any) -> Any:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(["logits"], {"images": images})[0]


@pytest.mark.parametrize("format", ["", ".int8"])
def test_the_file_divides(runs: dict[str, Path], images: Any, format: str) -> None:
    """By one node in float32; all before it is as in the raw file, so its logits are those of the raw one over T."""
    raw, calibrated = (runs[name] / f"exports/{NAME}{format}.onnx" for name in ("raw", "calibrated"))
    z = logits(raw, images)
    np.testing.assert_allclose(logits(calibrated, images), z / T, rtol=1e-6)
    np.testing.assert_array_equal(logits(calibrated, images).argmax(axis=1), z.argmax(axis=1))
    np.testing.assert_allclose(logits(calibrated, images[:1]), z[:1] / T, rtol=1e-3, atol=1e-3)  # any batch
    kinds = [[node.op_type for node in onnx.load(path).graph.node] for path in (raw, calibrated)]
    assert kinds[1] == [*kinds[0], "Div"]
    if not format:
        expected = load_ladder(runs["torch"]).load(NAME)(torch.from_numpy(images)).div(T).softmax(dim=1)
        found = torch.from_numpy(logits(calibrated, images)).softmax(dim=1)
        torch.testing.assert_close(found, expected.detach(), rtol=0, atol=1e-5)


def test_file_and_manifest_say_so(runs: dict[str, Path]) -> None:
    for name in ("raw", "calibrated"):
        student = load_ladder(runs[name]).student(NAME)
        assert student.exported.keys() == {"onnx", "int8"}
        for format, path in student.exports.items():
            about = {entry.key: json.loads(entry.value) for entry in onnx.load(runs[name] / path).metadata_props}
            assert about["temperature"] == T
            assert about["calibrated"] is student.exported[format].calibrated is (name == "calibrated")


@pytest.mark.parametrize("name", ["torch", "raw", "calibrated"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_the_temperature_is_applied_once(
    runs: dict[str, Path],
    images: Any,
    tmp_path: Path,
    name: str,
    calibrated: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And the classes, in their order, are those of the raw logits."""
    for i, image in enumerate(images[:8]):
        Image.fromarray((255 * image).round().astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / f"{i}.png")
    predict([str(tmp_path)], runs[name], student=NAME, top=10, calibrated=calibrated, json_output=True)
    said = capsys.readouterr()
    assert ("at temperature 2.5" if calibrated else "probabilities not calibrated") in said.err
    document = json.loads(said.out)
    assert document["temperature"] == (T if calibrated else None)
    z = load_ladder(runs["torch"]).load(NAME)(torch.from_numpy(images[:8])).detach()
    p = (z / T if calibrated else z).softmax(dim=1)
    for entry, row, order in zip(document["images"], p, z.argsort(dim=1, descending=True), strict=True):
        assert [guess["label"] for guess in entry["top"]] == [str(int(c)) for c in order]
        assert [guess["probability"] for guess in entry["top"]] == pytest.approx(row[order].tolist(), abs=1e-5)


@pytest.mark.parametrize("format", ["", ".int8"])
def test_a_session_of_each_file(runs: dict[str, Path], images: Any, tmp_path: Path, format: str) -> None:
    Image.fromarray((255 * images[0]).round().astype(np.uint8).transpose(1, 2, 0)).save(tmp_path / "a.png")
    for calibrated in (True, False):
        found = [
            load_ladder(runs[name]).session(NAME + format, calibrated=calibrated).predict(tmp_path / "a.png", top=10)
            for name in ("raw", "calibrated")
        ]
        assert [guess.label for guess in found[0][0]] == [guess.label for guess in found[1][0]]
        first, second = ([guess.probability for guess in guesses[0]] for guesses in found)
        assert first == pytest.approx(second, abs=1e-6)
        z = torch.from_numpy(logits(runs["raw"] / f"exports/{NAME}{format}.onnx", images[:1]))[0]
        assert first[0] == pytest.approx(float((z / (T if calibrated else 1)).softmax(dim=0).max()), abs=1e-5)


def test_the_check_is_against_the_calibrated_model(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    divide = onnx_file.divide_logits
    monkeypatch.setattr(onnx_file, "divide_logits", lambda content, t: divide(content, 1.001 * t))
    with pytest.raises(GateRefused, match="differs from the model"):
        export(str(runs["torch"]), calibrated=True)
    assert "onnx" not in load_ladder(runs["torch"]).student(NAME).exports
    assert not (runs["torch"] / f"exports/{NAME}.onnx").exists()


def test_a_student_without_temperature(runs: dict[str, Path], tmp_path: Path) -> None:
    run = Path(shutil.copytree(runs["raw"], tmp_path / "run"))
    update(run, lambda student: replace(student, calibration=None))
    with pytest.raises(UserError, match=f"--calibrated: no temperature was fitted for {NAME} .*export without it"):
        export(str(run), calibrated=True)
    export(str(run), force=True)
    assert load_ladder(run).session(NAME).temperature is None


@pytest.mark.parametrize("bad", ["0", "-1", "1e9", "NaN", '"2"', "true", "[2]", "1" + "0" * 400])
def test_a_hostile_temperature_in_a_file(runs: dict[str, Path], tmp_path: Path, bad: str) -> None:
    document = onnx.load(runs["raw"] / f"exports/{NAME}.onnx")
    for entry in document.metadata_props:
        if entry.key == "temperature":
            entry.value = bad
    onnx.save(document, tmp_path / "a.onnx")
    with pytest.raises(UserError, match=r"a.onnx: its temperature is not a number from 0.001 to 1000"):
        open_session(tmp_path / "a.onnx")


def test_a_file_of_before_has_none(runs: dict[str, Path], tmp_path: Path) -> None:
    document = onnx.load(runs["raw"] / f"exports/{NAME}.onnx")
    kept = [entry for entry in document.metadata_props if entry.key not in ("temperature", "calibrated")]
    del document.metadata_props[:]
    document.metadata_props.extend(kept)
    onnx.save(document, tmp_path / "a.onnx")
    assert [open_session(tmp_path / "a.onnx", calibrated=c).temperature for c in (True, False)] == [None, None]

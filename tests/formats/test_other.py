"""fp16, OpenVINO and torch.export: each file in its own runtime against the model, kept or refused, and selected."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from mcd_cli.data import load_dataset
from mcd_cli.data.loader import plain
from mcd_cli.formats.fp16 import Fp16
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.ladder.variants import FORMATS, OTHERS
from support.commands import mcd

try:
    import openvino
except ImportError:
    openvino = None
WRITTEN = [name for name in OTHERS if name != "openvino" or openvino is not None]


@pytest.fixture
def run(deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(deployed, tmp_path / "run"))


def test_each_format_computes_what_the_model_does(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read by each runtime's own loader, on test images, for any number of images; then selected by its size."""
    assert mcd(monkeypatch, "export", "--run", "run", "--format", ",".join(["onnx", *WRITTEN])) == 0
    said = capsys.readouterr()
    paths = [Path(line) for line in said.out.split()]
    assert [path.name for path in paths[1:]] == [f"resnet10-xxs.{FORMATS[name].ending}" for name in WRITTEN]
    assert not [path for path in (run / "exports").iterdir() if path.name.startswith(".")]
    ladder = load_ladder(run)
    dataset = load_dataset("digits", image_size=16)
    images = plain(dataset.images[dataset.test[:37]])
    with torch.no_grad():
        expected = ladder.load("resnet10-xxs")(images).numpy()
    files = dict(zip(WRITTEN, paths[1:], strict=True))
    found = {"pt2": torch.export.load(files["pt2"]).module()(images).detach().numpy()}
    session = onnxruntime.InferenceSession(files["fp16"])
    assert [session.get_inputs()[0].type, session.get_outputs()[0].type] == ["tensor(float)"] * 2
    (found["fp16"],) = session.run(None, {"images": images.numpy()})
    if openvino is not None:
        compiled = openvino.Core().compile_model(files["openvino"], "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        found["openvino"] = compiled({"images": images.numpy()})[compiled.output(0)]
    for name, logits in found.items():
        rough = 0.02 if name == "fp16" else 1e-4
        assert np.abs(logits - expected).max() <= rough * np.abs(expected).max(), name
    (student,) = ladder.students
    for name in WRITTEN:
        entry = student.exported[name]
        size = sum(
            file.stat().st_size for file in (run / "exports").glob(f"{files[name].stem}.*") if file.suffix == ".bin"
        )
        assert entry.bytes == files[name].stat().st_size + (size if name == "openvino" else 0)
        assert mcd(monkeypatch, "select", "--run", "run", "--format", name, "--max-latency", "10s", "--json") == 0
        document = json.loads(capsys.readouterr().out)
        assert (document["student"], document["file"]) == (f"resnet10-xxs.{name}", str(files[name]))
        (candidate,) = document["students"]
        assert (candidate["bytes"], candidate["format"]) == (entry.bytes, name)
        assert mcd(monkeypatch, "select", "--run", "run", "--format", name, "--within", "1se", "--quiet") == 0
        assert capsys.readouterr().out.strip() == f"resnet10-xxs.{name}"
        assert mcd(monkeypatch, "select", "--run", "run", "--format", name, "--print", name) == 0
        assert capsys.readouterr().out.strip() == str(files[name])
    assert student.exported["fp16"].bytes < 0.7 * (run / "exports" / "resnet10-xxs.onnx").stat().st_size
    assert mcd(monkeypatch, "export", "--run", "run", "--format", ",".join(WRITTEN)) == 0
    assert "exported before, and unchanged" in capsys.readouterr().err


def test_a_file_that_differs_is_refused(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A writer that loses a layer's bias: exit code 4, the figures, no file."""
    write = Fp16.write

    def careless(self: Fp16, network: nn.Module, content: bytes, shape: tuple[int, ...], path: Path) -> list[Path]:
        import onnx

        document = onnx.load_from_string(content)
        last = [tensor for tensor in document.graph.initializer if tensor.dims == [10]][-1]
        last.CopyFrom(onnx.numpy_helper.from_array(np.zeros(10, np.float32), last.name))
        return write(self, network, document.SerializeToString(), shape, path)

    monkeypatch.setattr(Fp16, "write", careless)
    assert mcd(monkeypatch, "export", "--run", "run", "--format", "fp16", "--force") == 4
    assert "resnet10-xxs.fp16.onnx: the exported file differs from the model" in capsys.readouterr().err
    assert not (run / "exports" / "resnet10-xxs.fp16.onnx").exists()
    assert "fp16" not in load_ladder(run).students[0].exports


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("export --format openvin", "unknown format 'openvin'; did you mean openvino or onnx?"),
        ("export --format fp16 --no-preprocess", "--no-preprocess is for onnx"),
        ("select --format pt3", "unknown format 'pt3'; "),
        ("select --format pt2", "resnet10-xxs.pt2 is not exported; write it: mcd export --run run --format pt2"),
        ("select --format pt2 --print onnx", "unknown value of --print 'onnx'; known: name, pt2"),
    ],
)
def test_mistakes_are_one_line(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: str, message: str
) -> None:
    command, *rest = args.split()
    assert mcd(monkeypatch, command, "--run", "run", *rest) == 2
    assert message in capsys.readouterr().err


def test_a_missing_package_names_the_extra(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mcd_cli.cli.export.find_spec", lambda name: None)
    assert mcd(monkeypatch, "export", "--run", "run", "--format", "openvino") == 2
    assert "--format openvino needs the package openvino: pip install 'mcd-cli[openvino]'" in capsys.readouterr().err

"""Exported students in onnxruntime; the export check rejects a file that computes another function."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from mcd_cli.cli.export import export
from mcd_cli.errors import GateRefused, UserError
from mcd_cli.formats.onnx_file import check_onnx, keep_onnx, to_onnx
from mcd_cli.ladder.manifest import Ladder, load_ladder
from mcd_cli.ladder.session import open_session
from mcd_cli.models import build
from mcd_cli.models.normalized import Normalized
from support.runs import tiny_recipe, train


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    recipe = tiny_recipe(image_size=16, students=["resnet10-xxxs"], method="ce", epochs=1, warm_start={"epochs": 0})
    return train(recipe, tmp_path_factory.mktemp("runs") / "run")


def test_a_file_computes_what_load_does(ladder: Ladder, capsys: pytest.CaptureFixture[str]) -> None:
    assert ladder.folder is not None
    export(str(ladder.folder))
    (path,) = capsys.readouterr().out.split()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    model = load_ladder(ladder.folder).load("resnet10-xxxs")
    for n in (1, 5, 33):
        x = torch.rand(n, 3, 16, 16, generator=torch.Generator().manual_seed(n))
        (found,) = session.run(None, {"images": x.numpy()})
        np.testing.assert_allclose(found, model(x).detach().numpy(), rtol=0, atol=1e-4)
    document = onnx.load(path)
    assert {node.op_type for node in document.graph.node}.isdisjoint({"BatchNormalization"})
    assert {entry.key: json.loads(entry.value) for entry in document.metadata_props}["classes"] == list("0123456789")
    assert b".py" not in Path(path).read_bytes()
    assert load_ladder(ladder.folder).student("resnet10-xxxs").exports == {"onnx": "exports/resnet10-xxxs.onnx"}


class Drifting(nn.Module):
    """Another function each time it is traced or called in eager mode: what the gate is for."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :4]
        return flat if torch.compiler.is_exporting() else flat * 1.001


def test_the_gate_refuses_and_leaves_no_file(tmp_path: Path) -> None:
    x = torch.rand(80, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(80, dtype=torch.int64)
    with pytest.raises(GateRefused, match="differs from the model"):
        keep_onnx(Drifting(), to_onnx(Drifting(), (3, 8, 8), {}), x, y, tmp_path / "a.onnx")
    assert not list(tmp_path.iterdir())
    gate = check_onnx(Drifting(), to_onnx(Drifting(), (3, 8, 8), {}), x, y)
    assert gate.difference == pytest.approx(0.001 * float(x.flatten(1)[:, :4].max()), rel=1e-3)


def test_without_preprocessing(ladder: Ladder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file takes (x - mean) / std, has a name of its own, and its session still takes x."""
    assert ladder.folder is not None
    before = (ladder.folder / "ladder.json").read_bytes()
    export(str(ladder.folder), preprocess=False, out=str(tmp_path / "new/folder"))
    path = Path(capsys.readouterr().out.strip())
    assert path == tmp_path / "new/folder/resnet10-xxxs.no-preprocess.onnx"
    assert (ladder.folder / "ladder.json").read_bytes() == before  # --out tells the run nothing
    assert {node.op_type for node in onnx.load(path).graph.node}.isdisjoint({"Sub", "Div"})
    x = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (ladder.dataset.mean, ladder.dataset.std))
    expected = load_ladder(ladder.folder).load("resnet10-xxxs")(x).detach().numpy()
    (found,) = onnxruntime.InferenceSession(path).run(None, {"images": ((x - mean) / std).numpy()})
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(open_session(path).run(x.numpy()), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("arch", ["wrn-16-2", "shufflenet-v2"])
def test_other_families(arch: str) -> None:
    """One file each, free in n alone, one after the other through the gate; random weights and images."""
    torch.manual_seed(0)
    model = Normalized(build(arch, 7), [0.5] * 3, [0.25] * 3).eval()
    content = to_onnx(model, (3, 32, 32), {})
    x = torch.rand(72, 3, 32, 32)
    gate = check_onnx(model, content, x, model(x).argmax(dim=1))
    assert gate.passed
    assert gate.accuracy == (1.0, 1.0)
    document = onnx.load_from_string(content)
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in document.graph.input]
    assert dims == [["n", 3, 32, 32]]
    assert not any(t.data_location for t in document.graph.initializer)  # nothing lies outside


def test_where_it_cannot_write(ladder: Ladder, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in ("file", "file/below", ""):
        with pytest.raises(UserError, match="--out"):
            export(str(ladder.folder), out=out and str(tmp_path / out))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_read_only_run(ladder: Ladder, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(str(ladder.folder), run, ignore=shutil.ignore_patterns("exports"))
    run.chmod(0o500)
    with pytest.raises(UserError, match="is read-only; write elsewhere: --out DIR"):
        export(str(run))
    export(str(run), out=str(tmp_path / "elsewhere"))
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["resnet10-xxxs.onnx"]


def test_unknown_names(ladder: Ladder) -> None:
    with pytest.raises(UserError, match="did you mean onnx"):
        export(str(ladder.folder), format="onx")
    with pytest.raises(UserError, match="resnet10-xxxs"):
        export(str(ladder.folder), students=["resnet10-xxs"])

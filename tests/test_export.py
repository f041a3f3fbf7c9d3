"""Exported students in onnxruntime, and the gate that lets no other function through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import tiny_recipe, train
from torch import Tensor, nn

from mcd_cli.commands.export import export
from mcd_cli.errors import GateRefused, UserError
from mcd_cli.export import export_onnx, judge, to_onnx
from mcd_cli.ladder import Ladder, load_ladder


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Ladder:
    recipe = tiny_recipe(students=["resnet10-xxxs"], method="ce", epochs=1, warm_start={"epochs": 0})
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
        export_onnx(Drifting(), x, y, tmp_path / "a.onnx", {})
    assert not list(tmp_path.iterdir())
    gate = judge(Drifting(), to_onnx(Drifting(), (3, 8, 8), {}), x, y)
    assert gate.difference == pytest.approx(0.001 * float(x.flatten(1)[:, :4].max()), rel=1e-3)


def test_unknown_names(ladder: Ladder) -> None:
    with pytest.raises(UserError, match="did you mean onnx"):
        export(str(ladder.folder), format="onx")
    with pytest.raises(UserError, match="resnet10-xxxs"):
        export(str(ladder.folder), students=["resnet10-xxs"])

"""The scripts in examples/ run as written, on a small run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import INSTALLED, ROOT
from support.runs import tiny_recipe


def example(name: str, folder: Path, *args: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(INSTALLED)}
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(tiny_recipe(epochs=1).to_toml(), encoding="utf-8")
    return tmp_path


def test_train_and_select(place: Path) -> None:
    lines = example("train_and_select", place, "--recipe", "tiny.toml").splitlines()
    assert lines[-1].startswith("under ")
    assert "resnet10-xxxs" in lines[-1]  # the smaller of two is the one below their middle
    assert (place / "runs/example/ladder.json").is_file()


def test_predict_with_onnxruntime(deployed: Path, tmp_path: Path) -> None:
    file = deployed / "exports" / "resnet10-xxs.onnx"
    *images, summary = example("predict_with_onnxruntime", tmp_path, str(file)).splitlines()
    assert len(images) == 5
    assert float(summary.partition("%")[0]) > 80  # a student that tells digits apart, and the preprocessing it needs


def test_compare_two_methods(place: Path) -> None:
    lines = example("compare_two_methods", place, "--recipe", "tiny.toml", "--seeds", "0,1").splitlines()
    assert lines[-2].startswith("kd-total-3 ")
    assert lines[-2].endswith("loss weight 3")
    assert lines[-1].startswith("over kd ")

"""`mcd select`: the name on stdout, the reasons on stderr, nothing heavy imported."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mcd_cli.cli.select import select
from mcd_cli.errors import NothingFits, UserError
from support import INSTALLED


def student(name: str, macs: int, val: float) -> dict[str, Any]:
    return {
        "name": name,
        "arch": "resnet10-xxxs",
        "weights": f"students/{name}.safetensors",
        "sha256": "0" * 64,
        "params": macs // 50,
        "macs": macs,
        "bytes": macs // 12,
        "accuracy": {"ce": None, "last": val, "val": val, "test": val - 0.01},
    }


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one finished run, runs/toy, as the working folder."""
    content = {
        "schema": 1,
        "version": "0.1.0",
        "created": "2025-01-02T03:04:05+00:00",
        "dataset": {
            "name": "toy",
            "classes": ["a", "b"],
            "input_shape": [3, 16, 16],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "split_seed": 0,
            "fingerprint": "f",
        },
        "teacher": None,
        "method": "kd",
        "recipe_sha256": "b" * 64,
        "seed": 0,
        "device": "cpu",
        "students": [
            student("resnet10-m", 16_180_000, 0.7),
            student("resnet10-s", 4_160_000, 0.6),
            student("poor", 3_000_000, 0.3),
            student("tiny", 770_000, 0.4),
        ],
    }
    (tmp_path / "runs/toy").mkdir(parents=True)
    (tmp_path / "runs/toy/ladder.json").write_text(json.dumps(content))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_stdout_is_the_name_and_stderr_the_reasons(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(max_macs="16M")
    printed = capsys.readouterr()
    assert printed.out == "resnet10-s\n"
    assert "nearest miss: resnet10-m needs 16.2M: 1.1 % over" in printed.err
    assert "runs/toy: --max-macs 16M" in printed.err
    rows = {line.split()[0]: line for line in printed.err.splitlines() if line}
    assert rows["resnet10-m"].split()[1:4] == ["16.18M", "323.6K", "1.35MB"]
    assert rows["resnet10-m"].split()[4:] == ["weights", "70.00", "69.00", "*", "no"]
    assert rows["resnet10-s"].split()[4:] == ["weights", "60.00", "59.00", "*", "yes"]
    assert "*" not in rows["poor"]  # tiny is cheaper and better
    assert "…" not in printed.err


def test_no_limit_and_quiet(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select()
    assert "no limit" in capsys.readouterr().err
    select("runs/toy", min_accuracy="35%", max_params="20K", quiet=True)
    assert capsys.readouterr() == ("tiny\n", "")


def test_json_is_one_document_of_plain_numbers(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select(max_macs="16M", max_size="1MB", json_output=True)
    document = json.loads(capsys.readouterr().out)
    assert document["student"] == "resnet10-s"
    assert document["run"] == "runs/toy"
    assert document["budget"] == {"max_macs": 16_000_000, "max_size": 1_000_000}
    assert document["nearest_miss"] == "resnet10-m"
    first = document["students"][0]
    assert (first["macs"], first["fits"], first["latency_ms"]) == (16_180_000, False, None)
    assert [(miss["limit"], miss["need"]) for miss in first["misses"]] == [
        ("max_macs", 16_180_000),
        ("max_size", 1_348_333),
    ]
    assert first["misses"][0]["excess"] == pytest.approx(0.01125)


def test_nothing_fits(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NothingFits, match="tiny needs 770K: 54 % over"):
        select(max_macs="500K")
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "resnet10-m" in printed.err
    with pytest.raises(NothingFits):
        select(max_macs="500K", json_output=True)
    assert json.loads(capsys.readouterr().out)["student"] is None


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({"max_macs": "16 apples"}, "--max-macs"),
        ({"min_accuracy": "72"}, "--min-accuracy"),
        ({"max_latency": "2ms"}, "resnet10-m is not exported; write it: mcd export --run runs/toy"),
        ({"print_": "path"}, "unknown value of --print"),
        ({"max_macs": "16M", "print_": "onnx", "json_output": False}, "resnet10-s is not exported"),
        ({"run": "elsewhere"}, "run folder elsewhere does not exist"),
    ],
)
def test_what_makes_no_sense_prints_nothing(
    runs: Path, capsys: pytest.CaptureFixture[str], limits: dict[str, Any], why: str
) -> None:
    with pytest.raises(UserError, match=why):
        select(**{"json_output": True} | limits)
    assert capsys.readouterr().out == ""


def test_select_imports_nothing_heavy(runs: Path) -> None:
    heavy = ["torch", "numpy", "safetensors", "fvcore", "matplotlib", "onnxruntime"]
    code = (
        "import sys; from mcd_cli.cli.select import select; select(max_macs='16M');"
        f"print([name for name in {heavy} if name in sys.modules])"
    )
    package = str(INSTALLED)
    ran = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {package!r}); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout == "resnet10-s\n[]\n"

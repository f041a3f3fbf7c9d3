"""`mcd select`: the name on stdout, the reasons on stderr, nothing heavy imported."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.numpy import save_file

from mcd_cli.cli.select import select
from mcd_cli.errors import NothingFits, UserError
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.reporting.console import table_that_fits
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
    assert rows["resnet10-m"].split()[1:5] == ["misses", "16.18M", "323.6K", "1.35MB"]
    assert rows["resnet10-m"].split()[5:] == ["weights", "70.00", "69.00", "*"]
    assert rows["resnet10-s"].split()[1] == "chosen"
    assert "*" not in rows["poor"]  # tiny is cheaper and better
    assert "…" not in printed.err


def test_no_limit_and_quiet(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    select()
    assert "no limit" in capsys.readouterr().err
    select("runs/toy", min_accuracy="35%", max_params="20K", quiet=True)
    assert capsys.readouterr() == ("tiny\n", "")


def test_with_a_minimum_the_cheapest_is_chosen(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for limits, name in [
        ({"min_accuracy": "30%"}, "tiny"),
        ({"min_accuracy": "50%"}, "resnet10-s"),
        ({"min_accuracy": "50%", "by": "size"}, "resnet10-s"),
        ({"min_accuracy": "50%", "max_macs": "20M"}, "resnet10-s"),
        ({"min_accuracy": "65%"}, "resnet10-m"),
    ]:
        select(**limits, quiet=True)
        assert capsys.readouterr().out == f"{name}\n"
        assert load_ladder("runs/toy").select(**limits).name == name


def predicted(run: Path, right: dict[str, int]) -> None:
    """Stored predictions on 100 images of val: each student has the last `right` of them right."""
    labels = np.arange(100, dtype=np.int64) % 2
    of = {name: np.where(np.arange(100) >= 100 - num, labels, 1 - labels) for name, num in right.items()}
    save_file({"val": labels} | {f"val/best/{name}": x for name, x in of.items()}, run / "predictions.safetensors")


def test_a_difference_that_can_be_chance(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """resnet10-s loses 1 image to resnet10-m (1 standard error), tiny 4 (2), poor all."""
    predicted(runs / "runs/toy", {"resnet10-m": 70, "resnet10-s": 69, "tiny": 66, "poor": 0})
    select()
    said = capsys.readouterr()
    assert said.out == "resnet10-m\n"
    line = said.err.splitlines()[-1]
    assert line.startswith("within chance: resnet10-s has 4.16M MACs and is 1.0 points behind on val (1 lost, 0 gained")
    assert line.endswith("--within 1se chooses it")
    for within, name in {"1se": "resnet10-s", "2se": "tiny", "1.9 se": "resnet10-s", "0.5se": "resnet10-m"}.items():
        select(within=within, json_output=True)
        document = json.loads(capsys.readouterr().out)
        assert (document["student"], document["by"]) == (name, "macs")
        assert document["students"][1]["gap"] == {"lost": 1, "gained": 0, "num": 100}
        assert load_ladder("runs/toy").select(within=within).name == name
    select(within="9se", max_macs="1M", quiet=True)  # the best that fits is the one to compare with
    assert capsys.readouterr().out == "tiny\n"
    select(min_accuracy="35%")
    assert "chance" not in capsys.readouterr().err


def test_predictions_that_are_none(runs: Path) -> None:
    with pytest.raises(UserError, match=r"runs/toy has no predictions.safetensors; give --min-accuracy, or train"):
        select(within="1se")
    predicted(runs / "runs/toy", {"resnet10-m": 70, "resnet10-s": 69, "tiny": 66, "poor": 0})
    path = runs / "runs/toy/predictions.safetensors"
    whole = path.read_bytes()
    for content in (b"", whole[:-5], whole.replace(b"val/best/tiny", b"val/best/TINY"), whole.replace(b"I64", b"F64")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"predictions.safetensors cannot be read \(.*\); restore it"):
            select()


def test_a_narrow_terminal_loses_columns_and_no_digits() -> None:
    columns = ["student", "verdict", "MACs", "val %"]
    rows = [["a-student-of-a-long-name", "chosen", "16.18M", "70.00"]]
    for width, shown in {50: columns, 47: columns[:3], 36: columns[:2], 20: columns[:2]}.items():
        console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
        drawn = table_that_fits(console, columns, rows, ["val %", "MACs"])
        console.print(drawn)
        text = console.file.getvalue()  # type: ignore[attr-defined]
        assert [str(column.header) for column in drawn.columns] == shown
        assert "…" not in text
        assert "chosen" in text


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
        ({"by": "size"}, "--by size chooses the cheapest of what is accurate enough; add --min-accuracy"),
        ({"by": "cost", "min_accuracy": "1%"}, "unknown value of --by 'cost'"),
        ({"within": "1"}, "--within: '1' is not a number of standard errors; write it like 1se"),
        ({"within": "1se", "by": "latency"}, "resnet10-m is not exported"),
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

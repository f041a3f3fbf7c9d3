"""select, export and predict on one run: each uses the output of the one before, each refusal has its exit code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mcd_cli.cli import app
from mcd_cli.data import load_dataset
from mcd_cli.ladder.manifest import load_ladder

NAME = "resnet10-xxs"


@pytest.fixture
def runs(deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The exported run as runs/a of the working folder, and an image."""
    from PIL import Image

    shutil.copytree(deployed, tmp_path / "runs/a")
    dataset = load_dataset("digits")
    Image.fromarray(dataset.images[int(dataset.test[0])].permute(1, 2, 0).numpy()).save(tmp_path / "digit.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs/a"


def mcd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    monkeypatch.setattr(sys, "argv", ["mcd", *args])
    with pytest.raises(SystemExit) as end:
        app.run_command()
    assert isinstance(end.value.code, int)
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert "internal error" not in said.err
    return end.value.code, said.out, said.err


def test_select_feeds_export_and_predict(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, chosen, _ = mcd(monkeypatch, capsys, "select", "--max-macs", "16M")
    assert code == 0
    code, paths, _ = mcd(monkeypatch, capsys, "export", "--student", chosen.strip(), "--max-drop", "100", "--out", "o")
    assert code == 0
    assert all(Path(path).is_file() for path in paths.splitlines())
    code, out, err = mcd(monkeypatch, capsys, "predict", "digit.png", "--student", chosen.strip(), "--top", "2")
    assert (code, len(out.splitlines()), out.count("%")) == (0, 1, 2)
    assert f"runs/a: {chosen.strip()}, " in err
    code, out, _ = mcd(monkeypatch, capsys, "report")
    assert (code, out.splitlines()) == (0, ["runs/a/report.html", "runs/a/MODEL_CARD.md"])


@pytest.mark.parametrize(
    ("args", "code", "line"),
    [
        ("select --max-macs 1M --max-macs 2M", 2, "--max-macs was given 2 times (1M, 2M); give it once"),
        ("select --percentile p90", 2, "add --max-latency"),
        ("select --max-latency 2ms --percentile p95", 2, "unknown percentile 'p95'"),
        ("select --max-macs 2ms", 2, "--max-macs: '2ms' is not a count"),
        ("select --max-macs 10 --quiet", 3, "no student fits --max-macs 10"),
        ("select --print paths", 2, "unknown value of --print 'paths'"),
        ("select --threads 0", 2, "--threads"),
        ("export --student resnet10-xs", 2, "did you mean resnet10-xxs"),
        ("export --student resnet10-xxs.int4", 2, "write resnet10-xxs or resnet10-xxs.int8"),
        ("export --max-drop -1", 2, "between 0 and 100"),
        ("export --out digit.png/x", 2, "digit.png is a file, not a folder"),
        ("export --run runs/b", 2, "the run folder runs/b does not exist"),
        ("predict none.png", 1, "1 of 1 images cannot be read: none.png"),
        ("predict digit.png --format xml", 2, "unknown format 'xml'"),
        ("predict digit.png --student resnet10-xxs --max-macs 1M", 2, "not both"),
        ("predict digit.png --top 0", 2, "--top"),
        ("profile --run runs/a --latency --batch 0", 2, "--batch '0'"),
        ("profile --run runs/a --latency --runs 10", 2, "--runs"),
        ("profile", 2, "name architectures (mcd profile resnet10-s; mcd list architectures), a run's students"),
        ("profile --plot", 2, "name it: --run DIR"),
        ("profile --latency", 2, "--latency needs architectures or --run"),
        ("report runs", 2, "runs is not a finished run"),
    ],
)
def test_refusals(
    args: str,
    code: int,
    line: str,
    runs: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    found, out, err = mcd(monkeypatch, capsys, *args.split())
    assert found == code
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before
    if code:
        assert out == ""
        assert line in err.splitlines()[-1]


def test_a_gate_that_refuses_exits_with_4(
    runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("mcd_cli.formats.onnx_file.TOLERANCE", 0.0)  # no two runtimes agree to the last bit
    code, out, err = mcd(monkeypatch, capsys, "export", "--int8", "--force")
    assert (code, out) == (4, "")
    assert "the exported file differs from the model: logits differ by at most" in err.splitlines()[-1]
    assert not (runs / f"exports/{NAME}.onnx").exists()
    size = load_ladder(runs).student(NAME).exported["int8"].bytes
    code, out, _ = mcd(monkeypatch, capsys, "select", "--print", "onnx", "--max-size", str(size), "--quiet")
    assert (code, out) == (0, f"runs/a/exports/{NAME}.int8.onnx\n")  # exported earlier, and kept


def test_predict_needs_no_torch_once_exported(runs: Path) -> None:
    code = (
        "import sys; sys.argv = ['mcd', 'predict', 'digit.png']\nfrom mcd_cli.cli import app\n"
        "try:\n    app.run_command()\nexcept SystemExit:\n    print('torch' in sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(app.__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False", done.stderr

"""Every mistake on the command line gives one line and an exit code, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mcd_cli.ladder.folder import RunFolder
from mcd_cli.models import build
from mcd_cli.models.teacher_file import save_model
from support import INSTALLED
from support.commands import everything, mcd, refused
from support.pictures import image_folder
from support.runs import TINY, tiny_recipe


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("--nope", "No such option: --nope"),
        ("--dataset digts", "unknown data set 'digts'; did you mean digits?"),
        ("--dataset ./nowhere", "data set folder './nowhere' does not exist"),
        ("--set epoch=3", "unknown recipe key 'epoch'; did you mean epochs"),
        ("--set coordinator.evry=3", "did you mean coordinator.every"),
        ("--set nonsense", "--set takes key=value"),
        ("--set epochs=many", "epochs: input should be a valid integer, got 'many'"),
        ("--set optimizer.lr=nan", "optimizer.lr: input should be a finite number"),
        ("--set dataset=[1]", "recipe key dataset"),
        ("--method kdd", "unknown method 'kdd'; did you mean kd"),
        ("--recipe digit", "unknown recipe 'digit'; did you mean digits?"),
        ("--recipe none.toml", "recipe file none.toml does not exist"),
        ("--students resnet10-z", "did you mean resnet10"),
        ("--students resnet10-s,resnet10-s", "duplicate student name 'resnet10-s'"),
        ("--students resnet10-s,", "a student is written ARCH or NAME=ARCH"),
        ("--students Big=resnet10-s", "'Big' is not a valid student name"),
        ("--students teacher=resnet10-s", "reserved for the teacher"),
        ("--students a=torchvision:resnet19", "unknown torchvision architecture"),
        ("--teacher resnet45", "unknown architecture 'resnet45'; did you mean resnet"),
        ("--teacher resnet18 --teacher-arch resnet34", "--teacher-arch is for a teacher's file"),
        ("--teacher none.pt", "none.pt cannot be read: No such file"),
        ("--teacher ./", "cannot be read"),
        ("--teacher-norm imagent", "did you mean imagenet?"),
        ("--teacher-norm 1,2,3/0,1,1", "is not a mean and std"),
        ("--teacher-norm half", "norm applies only to a teacher file"),
        ("--epochs 0", "greater than or equal to 1, got 0"),
        ("--epochs 1.5", "'--epochs'"),
        ("--epochs 99999999999999999999", "epochs"),
        ("--seed -1", "seed"),
        ("--seed 99999999999999999999", "seed"),
        ("--batch-size 1", "batch_size"),
        ("--batch-size 5000", "a batch of 5000 is larger than the training split"),
        ("--batch-size 5000 --out new/nested/run", "a batch of 5000 is larger than the training split"),
        ("--image-size 0", "image_size"),
        ("--threads 0", "'--threads'"),
        ("--threads 99999999999", "'--threads'"),
        ("--device tpu", "--device takes auto, cpu, cuda or mps, not 'tpu'"),
        ("--precision fp16", "'auto', 'fp32' or 'bf16'"),
        ("--checkpoint-every soon", "'soon' is not an interval"),
        ("--out tiny.toml", "is a file or under one"),
        ("--out tiny.toml/run", "is a file or under one"),
        ("--out .", "is not empty"),
        ("--resume nowhere", "no run found there"),
        ("--resume .", "no run found there"),
    ],
)
def test_wrong_input(
    args: str, message: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(monkeypatch, capsys, place, "distill", *args.split())


def test_an_empty_out_stays_the_users(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "mine").mkdir()
    refused(monkeypatch, capsys, place, "distill", "--out", "mine", "--batch-size", "5000")
    refused(monkeypatch, capsys, place, "distill", "--out", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_cuda(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no CUDA device" in refused(monkeypatch, capsys, place, "distill", "--device", "cuda")


def test_teacher_files(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Text, nothing, half a file, another task's teacher; and one that only guesses (4: a gate)."""
    (place / "text.pt").write_text("hello")
    (place / "empty.pt").touch()
    for name, num_classes in (("seven", 7), ("guesser", 10)):
        torch.manual_seed(0)
        save_model(
            place / f"{name}.safetensors",
            build("resnet10-xs", num_classes).state_dict(),
            {"arch": "resnet10-xs", "num_classes": num_classes},
        )
    whole = (place / "guesser.safetensors").read_bytes()
    (place / "half.safetensors").write_bytes(whole[: len(whole) // 2])
    torch.save({"weights": object}, place / "foreign.pt")
    for name, message in {
        "text.pt": "seems to be text",
        "empty.pt": "is empty",
        "half.safetensors": "damaged",
        "foreign.pt": "foreign.pt",
        "seven.safetensors": "has 7 classes, but the data set has 10",
    }.items():
        assert message in refused(monkeypatch, capsys, place, "distill", "--teacher", name)
    line = refused(
        monkeypatch, capsys, place, "distill", "--recipe", "tiny.toml", "--teacher", "guesser.safetensors", code=4
    )
    assert "near chance" in line
    assert "--force" in line


def test_data_that_is_none(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    image_folder(place / "single", "a", 10)
    image_folder(place / "torn", "ab", 10)
    (place / "torn/b/3.png").write_bytes((place / "torn/b/3.png").read_bytes()[:60])
    (place / "empty").mkdir()
    for name, message in {
        "single": "needs at least two classes",
        "empty": "no class folders",
        "torn": "'b/3.png'",
        "torn --skip-bad-images": "a batch of 400 is larger",
    }.items():
        assert message in refused(monkeypatch, capsys, place, "distill", "--dataset", *name.split())


def test_recipe_files(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for content in (b"epochs =", b"dataset = '\xe9'", b'extends = "r"', b"seed = 1e400", b"x = " + 3000 * b"["):
        (place / "r.toml").write_bytes(content)
        refused(monkeypatch, capsys, place, "distill", "--recipe", "r.toml")


def test_a_locked_folder(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Another process writes to it."""
    (place / "run").mkdir()
    code = (
        "import sys; from mcd_cli.ladder.folder import RunFolder; from mcd_cli.recipe.loading import load_recipe\n"
        "folder = RunFolder.create('run', load_recipe('tiny.toml', {})); print('locked', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(INSTALLED)}
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        assert "another run is writing" in refused(monkeypatch, capsys, place, "distill", "--resume", "run")
        other.communicate()


def test_resume_keeps_its_recipe(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder.create("run", tiny_recipe()).close()
    for args in (["--epochs", "3"], ["--set", "seed=1"], ["--students", "resnet10-s"], ["--out", "x"], ["--fast"]):
        assert "only --device" in refused(monkeypatch, capsys, place, "distill", "--resume", "run", *args)
    assert "--dry-run" in refused(monkeypatch, capsys, place, "distill", "--resume", "run", "--dry-run")
    (place / "run/recipe.toml").write_text("epochs = 0")
    refused(monkeypatch, capsys, place, "distill", "--resume", "run")


@pytest.mark.parametrize("as_json", [False, True])
def test_dry_run(
    as_json: bool, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = everything(place)
    args = ["distill", "--recipe", "tiny.toml", "--seed", "7", "--dry-run", *["--json", "--fast", "--eager"] * as_json]
    assert mcd(monkeypatch, *args) == 0
    said = capsys.readouterr()
    assert everything(place) == before
    assert "about" in said.err
    if as_json:
        document = json.loads(said.out)
        assert document["recipe"]["seed"] == 7
        assert document["recipe"]["deterministic"] is False  # --fast
        assert "a rerun will not be bit-identical" in said.err
        assert [student["name"] for student in document["students"]] == TINY["students"]
        assert document["estimate_seconds"] > 0
    else:
        assert "seed = 7" in said.out
        assert "resnet10-xxxs" in said.out


def test_a_run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One JSON document; then the finished folder again, as a table alone; then a student of it."""
    assert mcd(monkeypatch, "distill", "--recipe", "tiny.toml", "--epochs", "1", "--json", "--quiet") == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    assert document["run"] == "runs/digits-mc-distil-1"
    assert said.err == ""
    assert mcd(monkeypatch, "distill", "--resume", document["run"], "--quiet") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert "resnet10-xxxs" in said.out
    assert mcd(monkeypatch, "select", "--quiet") == 0
    assert capsys.readouterr().out.strip() in TINY["students"]
    assert mcd(monkeypatch, "select", "--max-macs", "1") == 3
    assert mcd(monkeypatch, "select", "--max-macs", "much") == 2


def test_nan(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The run fails through the machine's eyes: 1, one line that names the student and a way out."""
    args = ["--recipe", "tiny.toml", "--students", "resnet10-xxxs", "--set", "optimizer.lr=1e30", "--quiet"]
    assert mcd(monkeypatch, "distill", *args) == 1
    said = capsys.readouterr()
    assert "resnet10-xxxs are not finite" in said.err.splitlines()[-1]
    assert "Traceback" not in said.err


@pytest.fixture
def long_run(place: Path) -> subprocess.Popen[str]:
    """`mcd distill` as its own process, in the middle of its training."""
    args = [sys.executable, "-m", "mcd_cli", "distill", "--recipe", "tiny.toml", "--out", "run", "--threads", "1"]
    args += ["--epochs", "500", "--set", "warm_start.epochs=0"]
    environment = os.environ | {"PYTHONPATH": str(INSTALLED)}
    process = subprocess.Popen(args, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("distill 1/"):
            return process
    raise AssertionError(f"it ended too early: {process.wait()}")


def test_interrupt(long_run: subprocess.Popen[str], place: Path) -> None:
    """Ctrl-C saves and prints how to go on; no ladder, no traceback."""
    long_run.send_signal(signal.SIGINT)
    out, err = long_run.communicate(timeout=60)
    assert long_run.returncode == 130
    assert err.splitlines()[-1] == "mcd: interrupted; resume with: mcd distill --resume run"
    assert "Traceback" not in err
    assert out == ""
    assert not (place / "run/ladder.json").exists()


def test_a_reader_who_leaves() -> None:
    """`mcd … | head -1`: no noise."""
    command = f"{sys.executable} -m mcd_cli --help | head -1"
    environment = os.environ | {"PYTHONPATH": str(INSTALLED)}
    done = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")

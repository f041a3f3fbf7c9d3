"""`mcd list` and `mcd show`: every registered name is found, a recipe's values have the right origin, no torch."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer

from mcd_cli.cli import app as cli
from mcd_cli.cli import options
from mcd_cli.cli.help import GROUPS
from mcd_cli.cli.list import KINDS, list_names
from mcd_cli.cli.show import show
from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError, unknown
from mcd_cli.losses import LOSSES
from mcd_cli.methods import METHODS
from mcd_cli.models import ARCHITECTURES
from support import INSTALLED, ROOT


def names(kind: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    list_names(kind, json_output=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    rows = document[kind]
    list_names(kind)
    printed = capsys.readouterr().out
    found = [next(iter(row.values())) for row in rows]
    assert all(re.search(rf"^{re.escape(name)}\b", printed, re.MULTILINE) for name in found)
    return found


def test_every_name_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, table in {
        "methods": METHODS,
        "losses": LOSSES,
        "architectures": ARCHITECTURES,
        "datasets": DATASETS,
        "formats": ["onnx", "int8", "no-preprocess", "fp16", "openvino", "pt2"],
        "recipes": sorted(path.stem for path in (ROOT / "recipes").glob("*.toml")),
    }.items():
        assert names(kind, capsys) == list(table)
    assert {"kd-total-3", "growing-1", "kd-tuned/lambda-0.9-lr-0.1"} < set(names("overlays", capsys))
    assert tuple(KINDS) == options.KINDS
    with pytest.raises(UserError, match="unknown kind of list 'recipe'; did you mean recipes"):
        list_names("recipe")


def test_runs_newest_first(
    deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert names("runs", capsys) == []
    for name in ("finished", "damaged", "half", "older"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        shutil.copy(deployed / "recipe.toml", tmp_path / "runs" / name)
    manifest = json.loads((deployed / "ladder.json").read_text())
    for name, created in {"finished": "2099-01-01T00:00:00+00:00", "older": "2001-01-01T00:00:00"}.items():
        (tmp_path / f"runs/{name}/ladder.json").write_text(json.dumps(manifest | {"created": created}))
    (tmp_path / "runs/damaged/ladder.json").write_text("{")
    for name, second in {"damaged": 2_000_000_000, "half": 1_900_000_000}.items():
        os.utime(tmp_path / f"runs/{name}/recipe.toml", (second, second))
    assert names("runs", capsys) == ["runs/finished", "runs/damaged", "runs/half", "runs/older"]
    list_names("runs", json_output=True)
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    (student,) = manifest["students"]
    assert rows["runs/finished"] == {
        "run": "runs/finished",
        "method": "ce",
        "data_set": "digits",
        "best_on_val": {"resnet10-xxs": student["accuracy"]["val"]},
        "state": "finished",
        "ended": "2099-01-01 00:00",
    }
    assert (rows["runs/half"]["method"], rows["runs/half"]["state"]) == ("ce", "not finished")
    assert rows["runs/damaged"]["state"] == "damaged"
    list_names("runs")
    finished = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("runs/finished"))
    assert f"resnet10-xxs {100 * student['accuracy']['val']:.1f}%" in finished


def test_where_a_value_comes_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('extends = "cifar100-short"\n[optimizer]\nlr = 0.25\n[student.resnet10-s]\nlr = 0.5\n')
    show(str(mine), settings=["seed=7"], json_output=True)
    document = json.loads(capsys.readouterr().out)
    recipe, origins = document["recipe"], document["from"]
    assert (recipe["seed"], origins["seed"]) == (7, "--set")
    assert (recipe["optimizer"]["lr"], origins["optimizer.lr"]) == (0.25, str(mine))
    assert origins["student.resnet10-s.lr"] == str(mine)
    for base, over in (("paper", ("cifar100", "cifar100-short")), ("cifar100", ("cifar100-short",))):
        overridden = {key for name in over for key in keys(name)}
        for key in keys(base) - overridden - {"optimizer.lr", "seed"}:
            assert origins[key] == base, key
    assert origins["ema.decay"] == "default"
    show("digits")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["batch_size", "128", "digits"] in printed
    with pytest.raises(UserError, match="did you mean digits"):
        show("digit")
    with pytest.raises(UserError, match="did you mean epochs"):
        show("digits", settings=["epoch=1"])


def keys(recipe: str) -> set[str]:
    """The dotted keys that a shipped file sets itself."""
    content = tomllib.loads((ROOT / f"recipes/{recipe}.toml").read_text(encoding="utf-8"))
    plain = {key for key, value in content.items() if not isinstance(value, dict)} - {"extends"}
    return plain | {f"{key}.{inner}" for key, value in content.items() if isinstance(value, dict) for inner in value}


def test_lists_need_no_torch() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(INSTALLED)!r})\n"
        "from mcd_cli.cli.list import KINDS, list_names\nfrom mcd_cli.cli.show import show\n"
        "for kind in KINDS: list_names(kind)\nshow('digits')\n"
        "print([name for name in ('torch', 'numpy', 'onnxruntime') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("distill --method mc", ["mc-distil-nops", "mc-distil"]),
        ("distill --students resnet8x4,wrn-16", ["resnet8x4,wrn-16-2"]),
        ("distill --recipe cifar100-s", ["cifar100-short"]),
        ("distill -m k", ["kd"]),
        ("show di", ["digits"]),
        ("list form", ["formats"]),
        ("select --by s", ["size"]),
        ("compare --methods kd,kd-total", ["kd,kd-total-2", "kd,kd-total-3"]),
    ],
)
def test_completion_of_values(
    words: str, offered: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the shell asks: the words so far, and which of them is being written."""
    monkeypatch.setenv("COMP_WORDS", f"mcd {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    monkeypatch.setenv("_MCD_COMPLETE", "complete_bash")
    monkeypatch.setattr(sys, "argv", ["mcd"])
    typer.completion.completion_init()
    with pytest.raises(SystemExit):
        cli.app(prog_name="mcd")
    assert capsys.readouterr().out.split() == offered


def test_headings_name_parameters_that_exist() -> None:
    commands = typer.main.get_command(cli.app).commands.values()  # type: ignore[attr-defined]
    known = {parameter.name for command in commands for parameter in command.params} | {"help"}
    assert {name for group in GROUPS.values() for name in group.split()} <= known


def test_an_unknown_name_gets_three_suggestions() -> None:
    choices = [f"name-{i}" for i in range(46)]
    assert str(unknown("thing", "xyz", choices)).count("name-") == 3
    assert str(unknown("thing", "xyz", choices)).startswith("unknown thing 'xyz'; there are 46, such as name-")
    assert str(unknown("thing", "xyz", ["b", "a"])) == "unknown thing 'xyz'; known: a, b"

"""A new method is a file and a row: recipe, help, completion, comparison, engine and pictures then know it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import mcd_cli
from mcd_cli.comparison.plan import Plan, identity
from mcd_cli.comparison.runner import Comparison
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.errors import UserError
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.manifest import load_ladder
from mcd_cli.ladder.metrics import read_metrics
from mcd_cli.methods import METHODS, MethodSpec
from mcd_cli.recipe.overlays import find_contenders
from mcd_cli.recipe.schema import Recipe
from mcd_cli.registry import Table
from mcd_cli.reporting.coordinator_plot import story_figure
from mcd_cli.reporting.model_card import coordinator
from support.runs import Register, tiny_recipe

FILE = '''
import torch
from mcd_cli.methods.base import TEACHER, Method

class Smoothed(Method):
    """L_j = 1/n Σ_i α_ij ce_ij + β_ij kd_ij(z_T) + δ_ij kd_ij(0), with weights by C-NET."""

    losses = ("alpha", "beta", "delta")

    def targets(self, batch):
        z = batch.teachers[TEACHER]
        return torch.stack([z, torch.zeros_like(z)], dim=1)[:, None]
'''
ROW = MethodSpec(
    "smoothed:Smoothed", "mc-distil-nops and a uniform target", ("tau", "drop"), learned=True, needs_two="it has none"
)
HELP = f"""
import sys
from mcd_cli.methods import METHODS, MethodSpec
METHODS.register("smoothed", {ROW!r})
from mcd_cli.cli import app
app.app(prog_name="mcd")
"""


@pytest.fixture
def smoothed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: Register) -> None:
    """The file and the row."""
    (tmp_path / "smoothed.py").write_text(FILE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    register(METHODS, "smoothed", ROW)


@pytest.mark.usefixtures("smoothed")
def test_the_recipe_knows_its_settings() -> None:
    tiny_recipe(method="smoothed", distill={"drop": 0.5})
    with pytest.raises(UserError, match=r"distill\.clip is an option of rmc, not of smoothed"):
        tiny_recipe(method="smoothed", distill={"clip": True})
    with pytest.raises(UserError, match="normalise is an option of dgkd, not of smoothed"):
        tiny_recipe(method="smoothed", distill={"normalise": True})
    with pytest.raises(UserError, match="drop is an option of dgkd and smoothed, not of kd"):
        tiny_recipe(method="kd", distill={"drop": 0.5})
    with pytest.raises(UserError, match="smoothed needs two students or more: it has none"):
        tiny_recipe(method="smoothed", students=["resnet10-xxs"])
    with pytest.raises(UserError, match="did you mean smoothed"):
        tiny_recipe(method="smothed")


def mcd(*arguments: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(Path(mcd_cli.__file__).parent.parent), **environment}
    command = [sys.executable, "-c", HELP, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=env).stdout


def test_the_help_names_it() -> None:
    lines = [" ".join(line.split()) for line in mcd("distill", "--help").splitlines()]
    assert "smoothed mc-distil-nops and a uniform target" in lines
    for name, row in METHODS.items():
        assert f"{name} {row.summary}" in lines  # whole: none is too long for a terminal


def test_the_shell_completes_it() -> None:
    completed = mcd(_MCD_COMPLETE="complete_bash", COMP_WORDS="mcd distill --method smo", COMP_CWORD="3")
    assert completed.split() == ["smoothed"]


@pytest.mark.usefixtures("smoothed")
def test_compare_trains_it_and_the_report_shows_it(tmp_path: Path) -> None:
    base = tiny_recipe(epochs=1)
    plan = Plan(base, tuple(contender for name in ("kd", "smoothed") for contender in find_contenders(name)), (0,))
    options = RunOptions(device="cpu", threads=1)

    def engine(recipe: Recipe, folder: RunFolder) -> Run:
        return Run(recipe, folder, options, lambda event: None)

    folder = tmp_path / "comparison"
    folder.mkdir()
    comparison = Comparison(plan, folder, engine, lambda event: None)
    comparison.train()
    comparison.document([], None)
    _, row = json.loads((folder / "comparison.json").read_text())["contenders"]
    assert (row["name"], row["method"], row["updates"]) == ("smoothed", "smoothed", 2)
    assert "| smoothed |" in (folder / "comparison.md").read_text()

    ladder = load_ladder(folder / "cells" / "smoothed-seed0")
    records = read_metrics(folder / "cells" / "smoothed-seed0")
    assert set(records[-1].students["resnet10-xxs"].weights) == {"alpha", "beta", "delta"}
    figure = story_figure(records)
    assert figure is not None
    assert "delta" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert "delta" in str(coordinator(ladder, records))


@pytest.mark.usefixtures("smoothed")
def test_compare_knows_which_settings_matter() -> None:
    plain, dropped, other = (
        tiny_recipe(method="smoothed", distill=changes) for changes in ({}, {"drop": 0.5}, {"lambda": 0.9})
    )
    assert identity(plain) == identity(other)
    assert identity(plain) != identity(dropped)
    assert identity(plain) != identity(tiny_recipe(method="smoothed", coordinator={"every": 9}))  # it learns


def test_a_name_is_registered_once() -> None:
    table = Table("method", {"kd": ROW})
    with pytest.raises(ValueError, match="method 'kd' is registered already"):
        table.register("kd", ROW)
    table.register("smoothed", ROW)
    assert list(table) == ["kd", "smoothed"]
    table.unregister("smoothed")
    assert list(table) == ["kd"]

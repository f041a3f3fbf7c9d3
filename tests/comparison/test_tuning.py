"""`mcd tune`: the search on a known surface, and whole on real digits against the manifests of its runs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from mcd_cli.comparison.tuning import GRID, check_grid, default_grid, num_runs, search, short
from mcd_cli.errors import UserError
from mcd_cli.methods import METHODS
from mcd_cli.recipe.loading import load_recipe
from mcd_cli.recipe.overlays import Contender
from mcd_cli.recipe.schema import Recipe
from support.commands import mcd, refused
from support.runs import tiny_recipe

SMALL = [
    *("--teacher", "resnet10-xs", "--students", "resnet10-xs,resnet10-xxxs,resnet10-xxs", "--epochs", "7"),
    *("--set", "teacher.epochs=1", "--set", "warm_start.epochs=1", "--force", "--threads", "1", "--quiet"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


class Surface:
    """An accuracy with its peak at total 4, τ 3 and weight decay 0."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, contenders: Sequence[Contender]) -> Mapping[str, float]:
        self.seen += [c.name for c in contenders]
        return {c.name: self.of(c.recipe(tiny_recipe(method="kd"), 0)) for c in contenders}

    def of(self, recipe: Recipe) -> float:
        distill, optimizer = recipe.distill, recipe.optimizer
        return float(1 - abs(distill.total - 4) / 10 - abs(distill.tau - 3) / 20 - optimizer.weight_decay)


def test_each_key_is_chosen_with_the_earlier_ones_at_their_best() -> None:
    surface = Surface()
    grid = {"distill.total": (1, 3, 9), "distill.tau": (2, 3, 4), "optimizer.weight_decay": (5e-4,)}
    choices = search(tiny_recipe(method="kd"), grid, surface)
    assert [choice.best for choice in choices] == [3, 3, 1e-4]
    assert surface.seen[-1] == "total-3-tau-3-weight_decay-0.0005"
    assert choices[0].val == pytest.approx({1: 0.6499, 3: 0.8499, 9: 0.4499})
    assert len(set(surface.seen)) == 3 + 3 + 2
    assert num_runs(tiny_recipe(method="kd"), grid) == 3 + 2 + 1  # the best so far is among the next ones


def test_a_tie_keeps_the_recipes_value() -> None:
    (choice,) = search(
        tiny_recipe(method="kd"), {"distill.tau": (4, 1)}, lambda cs: dict.fromkeys([c.name for c in cs], 0.5)
    )
    assert choice.best == 2


def test_short_runs_take_the_smallest_students() -> None:
    students = {"big": "resnet10-s", "tiny": "resnet10-xxxs", "middle": "resnet10-xs"}
    recipe = tiny_recipe(students=students, epochs=40)
    assert list(short(recipe, 2).students) == ["tiny", "middle"]
    assert short(recipe, 1).epochs == 8
    assert short(tiny_recipe(epochs=3), 1).epochs == 3
    assert short(recipe, 9, epochs=2).students == students


@pytest.mark.parametrize("method", METHODS)
def test_the_default_grid_has_what_the_method_reads(method: str) -> None:
    grid = default_grid(tiny_recipe(method=method))
    read = {f"distill.{key}" for key in METHODS[method].settings} | {"optimizer.weight_decay"}
    assert list(grid) == [key for key in GRID if key in read]
    check_grid(tiny_recipe(method=method), grid)


def test_the_best_on_val_becomes_the_recipe(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--grid", "distill.total=1,3", "--grid", "distill.lambda=0.5,0.9", "--grid", "method=rule"]
    command = ["tune", "--method", "kd", "--pilot-epochs", "1", *grid, *SMALL, "--out", "tuning", "--json"]
    assert mcd(monkeypatch, *command) == 0
    document = json.loads(capsys.readouterr().out)
    val = dict(of_runs(place / "tuning"))
    assert len(val) == 4  # 2 + 2 + 2 − 2: the best of a key is the next key's first
    total = max((1, 3), key=lambda t: val[f"total-{t}"])
    assert document["keys"][0]["best"] == total
    for entry in document["keys"][1]["val"]:
        expected = f"total-{total}" + ("-lambda-0.9" if entry["value"] == 0.9 else "")
        assert entry["accuracy"] == pytest.approx(val[expected])
    by_method = {entry["value"]: entry["accuracy"] for entry in document["keys"][2]["val"]}
    assert max(val.values()) in (by_method["rule"], pytest.approx(by_method["kd"]))
    assert document["keys"][2]["best"] == ("rule" if by_method["rule"] > by_method["kd"] else "kd")

    tuned = load_recipe("tuning/tuned.toml", {})
    assert tuned.distill.total == total
    assert (tuned.epochs, len(tuned.students)) == (7, 3)  # the short runs' own are not kept
    before = {path: path.stat().st_mtime_ns for path in (place / "tuning/cells").rglob("*") if path.is_file()}
    assert mcd(monkeypatch, *command) == 0
    assert json.loads(capsys.readouterr().out) == document
    assert {path: path.stat().st_mtime_ns for path in before} == before  # nothing was trained again


def of_runs(folder: Path) -> Iterator[tuple[str, float]]:
    """Name and accuracy on val, from each run's manifest."""
    for path in folder.glob("cells/*/ladder.json"):
        students = json.loads(path.read_text())["students"]
        yield path.parent.name.removesuffix("-seed0"), sum(s["accuracy"]["val"] for s in students) / len(students)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--grid distil.total=1", "did you mean distill"),
        ("--grid teacher.epochs=1,2", "all runs share it"),
        ("--grid distill.total=1,-1", "greater than 0"),
        ("--grid distill.total", "takes KEY=VALUE"),
        ("--grid distill.tau=1 --grid distill.tau=2", "names distill.tau twice"),
        ("--grid distill=1", "table"),
        ("--resume runs/x", "run the same command again"),
        ("--pilots 0", "pilots"),
    ],
)
def test_mistakes(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    assert message in refused(monkeypatch, capsys, place, "tune", "--method", "kd", *arguments.split())


def test_a_table_is_no_value() -> None:
    with pytest.raises(UserError, match="single value"):
        check_grid(tiny_recipe(method="kd"), {"distill": (1,)})

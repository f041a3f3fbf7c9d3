"""Settings of single students: in company, each trains as it would alone with these settings for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mcd_cli.comparison.plan import warm_start_recipe
from mcd_cli.engine.stages import plan_stages
from mcd_cli.errors import Interrupted
from mcd_cli.ladder.folder import RunFolder
from support.runs import finished, go_on, make_run, signal_at, tiny_recipe, train

A, B = "resnet10-xxs", "resnet10-xxxs"


def trained(folder: Path, name: str, **changes: Any) -> dict[str, Tensor]:
    """That student's weights after an epoch of the method's last stage."""
    recipe = tiny_recipe(warm_start={"epochs": 0}, **changes)
    with RunFolder.create(str(folder), recipe) as opened:
        run = make_run(recipe, opened)
    torch.manual_seed(0)  # of the teacher, an untrained one
    trainer = run.trainer(run.plans[-1], rehearsal=True)
    for _ in trainer.steps():
        pass
    return dict(trainer.students.networks[name].state_dict())


@pytest.mark.parametrize(
    ("own", "for_all"),
    [
        ({"weight_decay": 0.05}, {"optimizer": {"weight_decay": 0.05}}),
        ({"lr": 0.2}, {"optimizer": {"lr": 0.2}}),
        ({"total": 2.0}, {"distill": {"total": 2.0}}),
        ({"lr": 0.01, "total": 4.0}, {"optimizer": {"lr": 0.01}, "distill": {"total": 4.0}}),
    ],
    ids=str,
)
def test_a_students_settings_are_those_it_would_have_alone(tmp_path: Path, own: dict, for_all: dict) -> None:
    together = {"method": "kd", "students": [A, B], "student": {A: own}}
    alone = {"method": "kd", "students": [A]}
    found = trained(tmp_path / "together", A, **together)
    expected = trained(tmp_path / "alone", A, **alone, **for_all)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())
    without = trained(tmp_path / "without", A, **alone)
    assert not all(torch.equal(value, without[key]) for key, value in found.items())
    other = trained(tmp_path / "other", B, **together)
    plain = trained(tmp_path / "plain", B, method="kd", students=[B])
    assert all(torch.equal(value, plain[key]) for key, value in other.items())


def test_its_total_replaces_the_methods(tmp_path: Path) -> None:
    found = trained(tmp_path / "own", A, method="kd", distill={"total": 4.0}, student={A: {"total": 2.0}})
    expected = trained(tmp_path / "all", A, method="kd", distill={"total": 2.0})
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_a_total_is_a_learning_rate(tmp_path: Path) -> None:
    """Without decay and for any method: twice the loss at half the rate is the same step."""
    plain = {"method": "dgkd", "students": [A, B], "optimizer": {"weight_decay": 0.0, "lr": 0.0625}}
    own = {"method": "dgkd", "students": [A, B], "optimizer": {"weight_decay": 0.0, "lr": 0.5}}
    found = trained(tmp_path / "own", B, **own, student={B: {"total": 2.0, "lr": 0.03125}})
    expected = trained(tmp_path / "plain", B, **plain)
    assert all(torch.equal(value, expected[key]) for key, value in found.items())


def test_the_warm_start_and_the_teacher_know_nothing_of_them() -> None:
    recipe = tiny_recipe(method="takd", student={A: {"lr": 0.3, "weight_decay": 0.0, "total": 3.0}})
    for plan in plan_stages(recipe, 10, train_teacher=True):
        own = [(plan.sgd_of(name)["lr"], plan.total_of(name)) for name in plan.stage.students]
        assert own == [(0.3, 3.0)] if plan.name == f"distill/{A}" else (0.3, 3.0) not in own
    students = dict(recipe.students)
    assert warm_start_recipe(recipe, students) == warm_start_recipe(tiny_recipe(), students)


def test_resuming_is_exact(tmp_path: Path) -> None:
    recipe = tiny_recipe(student={A: {"lr": 0.1, "weight_decay": 0.0}, B: {"total": 0.5}})
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", 5))
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")

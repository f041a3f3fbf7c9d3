"""The EMA of the weights against numpy in float64; what is chosen from it; exact resuming."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mcd_cli.engine.checkpoint import read_state
from mcd_cli.engine.stages import plan_stages
from mcd_cli.engine.trainer import Trainer
from mcd_cli.errors import Interrupted
from mcd_cli.ladder.folder import RunFolder
from support.runs import finished, go_on, make_run, signal_at, tiny_recipe, train

AVERAGED = {"ema": {"decay": 0.5}, "warm_start": {"epochs": 0}}


def trainer_of(folder: Path, **changes: object) -> Trainer:
    recipe = tiny_recipe(**{**AVERAGED, "method": "kd", **changes})
    with RunFolder.create(str(folder), recipe) as opened:
        run = make_run(recipe, opened)
    torch.manual_seed(0)  # of the teacher, an untrained one
    return run.trainer(run.plans[-1], rehearsal=True)


def numbers(state: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: value.detach().double().numpy().copy() for name, value in state.items()}


@pytest.mark.parametrize("method", ["kd", "mc-distil"])
@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_it_is_the_average_of_the_weights_of_every_step(tmp_path: Path, method: str, decay: float) -> None:
    """The weights of each step, averaged in numpy; a meta step moves them once, too."""
    trainer = trainer_of(tmp_path / "run", method=method, ema={"decay": decay})
    assert trainer.ema is not None
    expected = numbers(trainer.students.state_dict())
    step = 0
    for _ in range(2):
        for _ in trainer.steps():
            d = min(decay, (1 + step) / (10 + step))
            now = numbers(trainer.students.state_dict())
            expected = {name: d * expected[name] + (1 - d) * value for name, value in now.items()}
            step += 1
        trainer.end_epoch()
    assert step == 8
    found = numbers(trainer.ema.students.state_dict())
    assert found.keys() == expected.keys()
    moved = 0
    for name, value in found.items():
        if name.endswith("num_batches_tracked"):
            assert value == step
        else:
            np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-6)
            moved += not np.allclose(value, now[name], rtol=1e-3, atol=1e-4)
    assert moved > 20  # it is not the weights themselves


def test_it_does_not_touch_the_training(tmp_path: Path) -> None:
    plain, averaged = (trainer_of(tmp_path / name, ema={"decay": d}) for name, d in (("plain", 0.0), ("averaged", 0.9)))
    for trainer in (plain, averaged):
        for _ in trainer.steps():
            pass
    assert plain.ema is None
    state = averaged.students.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in plain.students.state_dict().items())


@pytest.mark.parametrize(
    ("raw", "averaged", "on_val", "chosen"),
    [([5, 5], [4, 6], False, [0, 1]), ([5, 5], [5, 5], False, [0, 0]), ([5, 5], [4, 6], True, [1, 1])],
)
def test_the_better_on_val_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, raw: list[int], averaged: list[int], on_val: bool, chosen: list
) -> None:
    """The weights themselves in a tie; the average where val is trained on and cannot choose."""
    trainer = trainer_of(tmp_path / "run")
    assert trainer.ema is not None
    trainer.plan = replace(trainer.plan, on_val=on_val)
    for _ in trainer.steps():
        pass
    names = trainer.students.names

    def correct(self: Trainer, students: object, run: object) -> dict[str, int]:
        return dict(zip(names, raw if students is trainer.students else averaged, strict=True))

    monkeypatch.setattr(Trainer, "_correct_on_val", correct)
    record = trainer.end_epoch()
    num_val = len(trainer.loader.dataset.val)
    for j, name in enumerate(names):
        source = (trainer.students, trainer.ema.students)[chosen[j]]
        expected = source.networks[name].state_dict()
        for weights in (trainer.best_weights[name], trainer.current(name)):
            assert all(torch.equal(value, expected[key]) for key, value in weights.items())
        assert trainer.best[name] == (raw, averaged)[chosen[j]][j]
        assert record.students[name].val_accuracy == raw[j] / num_val
        assert record.students[name].ema_val_accuracy == averaged[j] / num_val


def test_the_record_and_the_ladder_agree(tmp_path: Path) -> None:
    """The ladder's accuracy on val is the best of both kinds of weights over the epochs; the teacher has no average."""
    ladder = train(tiny_recipe(**{**AVERAGED, "epochs": 3, "optimizer": {"lr": 0.3}}), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    records = [record for record in records if record["stage"] == "distill"]
    for student in ladder.students:
        own = [record["students"][student.name] for record in records]
        best = max(max(r["val_accuracy"], r["ema_val_accuracy"]) for r in own)
        assert student.accuracy.val == pytest.approx(best)


@pytest.mark.parametrize("step", [3, 4, 8])
def test_resuming_is_exact(tmp_path: Path, step: int) -> None:
    recipe = tiny_recipe(**AVERAGED)
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", step))
    newest = read_state(max((tmp_path / "cut" / "checkpoint").glob("state-*")))
    assert any(name.startswith("ema:") for name in newest.tensors)
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")


def test_a_stop_after_the_last_epoch_keeps_the_choice(tmp_path: Path) -> None:
    """The choice between the two is part of the state: what is read after an end is what was judged there."""
    trainer = trainer_of(tmp_path / "run")
    for steps in trainer.epochs():
        for _ in steps:
            pass
        trainer.end_epoch()
    trainer.averaged = [trainer.students.names[1]]
    again = trainer_of(tmp_path / "again")
    again.load_state_dict(trainer.state_dict())
    for name in trainer.students.names:
        before, after = trainer.current(name), again.current(name)
        assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_only_the_methods_stages_have_one(tmp_path: Path) -> None:
    recipe = tiny_recipe(ema={"decay": 0.9}, method="takd")
    assert {plan.name: plan.ema for plan in plan_stages(recipe, 10, train_teacher=True)} == {
        "teacher": 0.0,
        "warm-start": 0.0,
        "distill/resnet10-xxs": 0.9,
        "distill/resnet10-xxxs": 0.9,
    }

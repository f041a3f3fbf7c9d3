"""Passes, operators and host syncs may not grow: they can be counted on a shared machine, where times mean little.

The bounds are what was counted when they were last set, plus two per cent; lower them when work is saved.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder
from support.operators import HOST_SYNC, Counted
from support.runs import make_run, tiny_recipe

STUDENTS = ["resnet10-xxs", "resnet10-xxxs"]


def trainer_of(folder: Path, method: str) -> Trainer:
    recipe = tiny_recipe(method=method, students=STUDENTS, warm_start={"epochs": 0})
    with RunFolder.create(str(folder), recipe) as opened:
        run = make_run(recipe, opened)
    return run.trainer(run.plans[-1], rehearsal=True)


def passes(model: nn.Module) -> list[int]:
    """A list that grows by the batch size with each forward pass from now on."""
    found: list[int] = []
    model.register_forward_hook(lambda module, inputs, output: found.append(len(inputs[0])))
    return found


@pytest.mark.parametrize(
    ("method", "number", "of_students", "of_coordinator", "operators"),
    [
        ("kd", 1, 1, 0, 747),
        ("mc-distil", 1, 1, 1, 847),
        ("mc-distil", 2, 3, 2, 3065),  # a meta step: L_val and the JVP, and C-NET's graph
    ],
)
def test_a_step(
    tmp_path: Path, method: str, number: int, of_students: int, of_coordinator: int, operators: int
) -> None:
    trainer = trainer_of(tmp_path / "run", method)
    batch = next(iter(trainer.loader.epoch(0)))
    trainer.step(batch)  # momentum buffers are made
    trainer.step_index = number
    students, teacher = passes(trainer.students), passes(trainer.teachers["teacher"])
    coordinators = [passes(cnet) for cnet in trainer.coordination.networks]
    with Counted() as counted:
        trainer.step(batch)
    assert (len(students), sum(map(len, coordinators))) == (of_students, of_coordinator)
    assert sum(teacher) == len(batch.ids)  # once, in pieces
    assert counted.calls[HOST_SYNC] <= 1  # is everything finite: before anything is moved
    assert counted.calls.total() <= operators


def test_an_epoch_waits_for_the_host_in_its_steps_alone(tmp_path: Path) -> None:
    """Batches, augmentation and meters ask the device for nothing."""
    trainer = trainer_of(tmp_path / "run", "mc-distil")
    with Counted() as counted:
        for _ in next(trainer.epochs()):
            pass
    assert trainer.step_index == trainer.loader.num_steps
    assert counted.calls[HOST_SYNC] <= trainer.step_index


def test_counting_counts() -> None:
    with Counted() as counted:
        torch.ones(2).sum().item()
    assert counted.calls[HOST_SYNC] == 1

"""Times cannot be asserted on shared machines; what is counted can: passes, operators and host syncs may not grow.

The bounds are what was counted when they were last set, plus two per cent; lower them when work is saved.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import make_run, tiny_recipe
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder

HOST_SYNC = "aten._local_scalar_dense"  # .item(), bool(tensor): on a GPU the host waits
STUDENTS = ["resnet10-xxs", "resnet10-xxxs"]


class Counted(TorchDispatchMode):
    """How often each operator is called within."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func).rpartition(".")[0]] += 1
        return func(*args, **(kwargs or {}))


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

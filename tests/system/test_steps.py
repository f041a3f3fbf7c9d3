"""Every architecture, Table 2's groups and torchvision's classifiers take a step in every stage, meta steps included.

tests/system/processors/ runs this file again under other instruction sets. No method has kernels of its own, so there
one method is enough.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mcd_cli.engine.hardware import _native_bf16
from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.models import ARCHITECTURES
from mcd_cli.recipe.loading import load_recipe
from support.operators import StridedKernels
from support.pictures import image_folder
from support.runs import make_run

TORCHVISION = {"teacher.arch": "resnet8x4", "students": ["small=torchvision:mobilenet_v3_small", "resnet10-xxs"]}
LIMITED = "ONEDNN_MAX_CPU_ISA" in os.environ


@pytest.mark.parametrize(
    ("recipe", "size", "methods"),
    [
        ("cifar100-resnet32x4", 32, ["ce", "takd", "dgkd", "rmc"]),
        ("cifar100-wrn-40-2", 32, ["kd", "meta-distil", "mc-distil-nops", "constant"]),
        ("tinyimagenet-resnet32x4", 64, ["mc-distil"]),
        ("tinyimagenet-wrn-40-2", 64, ["mc-distil"]),
        ("torchvision", 32, ["dgkd", "mc-distil"]),
        ("torchvision", 64, ["mc-distil"]),
    ],
)
def test_every_student_takes_a_step(tmp_path: Path, recipe: str, size: int, methods: list[str]) -> None:
    """Where C-NET learns, a meta step and then an ordinary one."""
    image_folder(tmp_path / "images", "abc", 5)
    changes = TORCHVISION if recipe == "torchvision" else {}
    name = "folder" if recipe == "torchvision" else recipe
    small = {
        "dataset": str(tmp_path / "images"),
        "image_size": size,
        "batch_size": 4,
        "epochs": 1,
        "coordinator.arch": "resnet10-xxxs",
        "coordinator.every": 2,
    }
    for method in ["mc-distil"] if LIMITED else methods:
        resolved = load_recipe(name, {**changes, **small, "method": method})
        with RunFolder.create(str(tmp_path / method), resolved) as folder:
            run = make_run(resolved, folder)
            for plan in run.plans[2:]:  # after the teacher and the warm start
                trainer = run.trainer(plan, rehearsal=True)
                before = {key: p.detach().clone() for key, p in trainer.students.named_parameters()}
                trainer.prepare()
                for _, batch in zip(range(1 + plan.learned), trainer.loader.epoch(0), strict=False):
                    trainer.step(batch)
                moved = {key for key, p in trainer.students.named_parameters() if not torch.equal(p, before[key])}
                assert {key.split(".")[1] for key in moved} == set(plan.stage.students)
                assert (trainer.step_index, trainer.updates) == ((2, 1) if plan.learned else (1, 0))


@pytest.mark.parametrize("size", [32, 64])
def test_every_architecture_takes_a_meta_step_and_a_step(tmp_path: Path, size: int) -> None:
    trainer = ladder_of_all(tmp_path, size, "fp32")
    take_steps(trainer, 2)
    assert trainer.updates == 1


@pytest.mark.skipif(LIMITED or not _native_bf16("cpu"), reason="no native bf16, or its instructions alone")
@pytest.mark.parametrize("size", [32, 64])
def test_every_architecture_takes_a_step_in_bf16(tmp_path: Path, size: int) -> None:
    trainer = ladder_of_all(tmp_path, size, "bf16")
    trainer.step_index = 1  # a meta step runs in float32: the test above
    take_steps(trainer, 1)
    assert trainer.updates == 0


def ladder_of_all(folder: Path, size: int, precision: str) -> Trainer:
    """Every architecture as a student of one run; C-NET learns in every second step."""
    image_folder(folder / "images", "abc", 5)
    recipe = load_recipe(
        "folder",
        {
            "dataset": str(folder / "images"),
            "image_size": size,
            "batch_size": 2,
            "epochs": 1,
            "students": list(ARCHITECTURES),
            "teacher.arch": "resnet10-xxxs",
            "coordinator.arch": "resnet10-xxs",
            "coordinator.every": 2,
            "precision": precision,
        },
    )
    with RunFolder.create(str(folder / "run"), recipe) as opened:
        run = make_run(recipe, opened)
        (plan,) = run.plans[2:]
        return run.trainer(plan, rehearsal=True)


def take_steps(trainer: Trainer, number: int) -> None:
    """Every student moves, all stays finite, and no strided 1×1 convolution reaches torch's kernel."""
    before = {key: p.detach().clone() for key, p in trainer.students.named_parameters()}
    for _, batch in zip(range(number), trainer.loader.epoch(0), strict=False):
        with StridedKernels() as seen:
            trainer.step(batch)
        assert not seen.shapes
    assert trainer.step_index == 2
    trainer.non_finite.refuse(trainer.step_index)
    moved = {key.split(".")[1] for key, p in trainer.students.named_parameters() if not torch.equal(p, before[key])}
    assert moved == set(ARCHITECTURES)

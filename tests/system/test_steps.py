"""Every architecture, Table 2's groups and torchvision's classifiers train: one step of every stage, meta steps too.

test_processors.py runs this file again under other instruction sets.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mcd_cli.engine.hardware import _native_bf16
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.models import ARCHITECTURES
from mcd_cli.recipe.loading import load_recipe
from support.operators import StridedKernels
from support.pictures import image_folder
from support.runs import make_run

TORCHVISION = {"teacher.arch": "resnet8x4", "students": ["small=torchvision:mobilenet_v3_small", "resnet10-xxs"]}


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
    image_folder(tmp_path / "images", "abc", 5)
    changes = TORCHVISION if recipe == "torchvision" else {}
    name = "folder" if recipe == "torchvision" else recipe
    small = {
        "dataset": str(tmp_path / "images"),
        "image_size": size,
        "batch_size": 4,
        "epochs": 1,
        "coordinator.arch": "resnet10-xxxs",
    }
    for method in methods:
        resolved = load_recipe(name, {**changes, **small, "method": method})
        with RunFolder.create(str(tmp_path / method), resolved) as folder:
            run = make_run(resolved, folder)
            for plan in run.plans[2:]:  # after the teacher and the warm start
                trainer = run.trainer(plan, rehearsal=True)
                before = {key: p.detach().clone() for key, p in trainer.students.named_parameters()}
                trainer.prepare()
                trainer.step(next(iter(trainer.loader.epoch(0))))
                moved = {key for key, p in trainer.students.named_parameters() if not torch.equal(p, before[key])}
                assert {key.split(".")[1] for key in moved} == set(plan.stage.students)
                assert trainer.updates == (1 if plan.method.learned else 0)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_architecture_takes_a_meta_step_and_a_step(tmp_path: Path, precision: str, size: int) -> None:
    """All as one ladder; bf16 where the processor computes in it, and not only its instructions under a lower limit."""
    if precision == "bf16" and (not _native_bf16("cpu") or "ONEDNN_MAX_CPU_ISA" in os.environ):
        pytest.skip("no native bf16")
    image_folder(tmp_path / "images", "abc", 5)
    recipe = load_recipe(
        "folder",
        {
            "dataset": str(tmp_path / "images"),
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
    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        run = make_run(recipe, folder)
        (plan,) = run.plans[2:]
        trainer = run.trainer(plan, rehearsal=True)
        before = {key: p.detach().clone() for key, p in trainer.students.named_parameters()}
        for _, batch in zip(range(2), trainer.loader.epoch(0), strict=False):
            with StridedKernels() as seen:
                trainer.step(batch)
            assert not seen.shapes
        assert (trainer.step_index, trainer.updates) == (2, 1)
        trainer.non_finite.refuse(trainer.step_index)
        moved = {key.split(".")[1] for key, p in trainer.students.named_parameters() if not torch.equal(p, before[key])}
        assert moved == set(ARCHITECTURES)

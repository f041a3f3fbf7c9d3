"""CUDA graphs against the steps as written: whole epochs, pair by pair, in one run. Needs a GPU.

    python benchmarks/graphs.py [--method mc-distil] [--images 50000] [--repeats 5] [--precision auto] [--fast]
                                [--coordinator ARCH] [--set key=value …] [--out benchmarks/results/NAME.json]

An epoch is that of a run, but for its checkpoint: batches, augmentation, steps, meta steps at their rate, evaluation on
V, each student's best. Recipe: cifar100's five students and teacher, batch 400; images: random ones in 100 classes, a
tenth of them V (50,000: 112 steps an epoch, as CIFAR-100). What is not replayed is told on stderr, with the reason.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from joint_step import batches_of, seconds, spread

from mcd_cli.data.augment import PRESETS
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.loader import Batch, Loader
from mcd_cli.engine.evaluation import predictions
from mcd_cli.engine.graph import Replayed
from mcd_cli.engine.run import Options, Run
from mcd_cli.engine.trainer import Trainer
from mcd_cli.recipe import load_recipe, parse_setting
from mcd_cli.run_folder import RunFolder


def trainer_of(asked: argparse.Namespace, *, eager: bool) -> Trainer:
    """The engine's own trainer at its first step."""
    overrides: dict[str, Any] = {"dataset": "digits", "image_size": 32, "method": asked.method}
    overrides |= {"precision": asked.precision, "deterministic": not asked.fast, "teacher.views": 0}
    overrides |= {} if asked.coordinator is None else {"coordinator.arch": asked.coordinator}
    recipe = load_recipe("cifar100", overrides | dict(parse_setting(text) for text in asked.set))
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, recipe) as opened:
        run = Run(recipe, opened, Options(device=asked.device, eager=eager), lambda event: None)
        run.dataset = random_images(run.dataset, asked.images)
        run.loader = Loader(
            run.dataset,
            batch_size=recipe.batch_size,
            seed=0,
            augmentation=PRESETS[recipe.augment.preset],
            augment_seed=0,
            device=run.hardware.device,
        )
        trainer = run._trainer(run.plans[-1], rehearsal=True)
    trainer.graphs.warn = lambda line: print(line, file=sys.stderr)
    return trainer


def random_images(like: Dataset, num_images: int) -> Dataset:
    shape, num_val = (num_images, *like.input_shape), num_images // 10
    return replace(
        like,
        classes=tuple(f"class {c}" for c in range(100)),
        images=torch.randint(0, 256, shape, dtype=torch.uint8),
        labels=torch.randint(0, 100, (num_images,)),
        train=torch.arange(num_images - num_val),
        val=torch.arange(num_images - num_val, num_images),
        test=torch.arange(0),
        mislabelled=torch.zeros(num_images, dtype=torch.bool),
    )


def warm_up(trainer: Trainer, batch: Batch) -> None:
    """Until both kinds of steps, and the evaluation, are replayed."""
    for number in (0, 1) * max(1, trainer.graphs.num_first):
        trainer.number = number
        trainer.step(batch)
        val = trainer.loader.dataset.val
        predictions(trainer.students, trainer.loader, val, trainer.evaluated)


def epoch(trainer: Trainer) -> None:
    """One as the run has it, its checkpoint apart."""
    trainer.number = trainer.epochs_done = 0
    for _ in trainer._steps():
        pass
    trainer.end_epoch()


def timed(trainer: Trainer) -> float:
    """Seconds of an epoch, the device's work included."""

    def whole() -> None:
        epoch(trainer)
        if trainer.hardware.device.type == "cuda":
            torch.cuda.synchronize()

    return seconds(whole)


def replayed(trainer: Trainer) -> list[str]:
    """What is replayed by now; the others are run as written, for the reason on stderr."""
    parts = (trainer.ordinary_step, trainer.meta_step, trainer.evaluated)
    return [part.name for part in parts if isinstance(part, Replayed) and part.replay is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="mc-distil")
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--coordinator")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    trainers = {kind: trainer_of(asked, eager=kind == "eager") for kind in ("graphed", "eager")}
    for trainer in trainers.values():
        warm_up(trainer, next(batches_of(trainer)))
    rows: list[dict[str, float]] = []
    for repeat in range(asked.repeats + 1):
        row = {kind: timed(trainer) for kind, trainer in trainers.items()}
        if repeat:  # the first pays for what the warm-up has left
            rows.append(row)
    graphed = trainers["graphed"]
    num_steps = graphed.loader.num_steps
    result = {
        "hardware": graphed.hardware.describe() | {"python": platform.python_version()},
        "method": asked.method,
        "settings": asked.set,
        "coordinator": graphed.plan.coordinator.arch if graphed.coordinator is not None else None,
        "deterministic": not asked.fast,
        "students": dict(graphed.students.archs),
        "batch": graphed.loader.batch_size,
        "steps_of_an_epoch": num_steps,
        "replayed": replayed(graphed),
        **{f"{kind}_step_ms": spread([1e3 * row[kind] / num_steps for row in rows]) for kind in trainers},
        "graphed_over_eager": spread([row["graphed"] / row["eager"] for row in rows]),
        "minutes_for_500_epochs": {kind: spread([500 / 60 * row[kind] for row in rows]) for kind in trainers},
    }
    print(text := json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

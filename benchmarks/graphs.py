"""On a GPU: whole epochs of the ladder with CUDA graphs and without, pair by pair, and what 500 of them would take.

    python benchmarks/graphs.py [--recipe NAME] [--method M] [--precision P] [--coordinator ARCH] [--repeats 5]
                                [--images 50000] [--fast] [--out benchmarks/results/NAME.json]

Images: random ones in 100 classes, a tenth of them V (50000 is the size of CIFAR-100's training set), or with
`--images 0` the built-in digits at the recipe's size; batch 400 unless set. An epoch is batches, augmentation, steps,
meta steps and evaluation on V. On a CPU there are no graphs, and nothing to compare.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from typing import Any

import torch
from floor import machine, options, recipe_of, timed
from joint_step import batches_of, spread

from mcd_cli.data.augment import PRESETS
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.loader import Batch, Loader
from mcd_cli.engine.cuda_graphs import GraphedCallable
from mcd_cli.engine.evaluation import predictions
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder


def trainer_of(asked: argparse.Namespace, *, eager: bool = False) -> Trainer:
    """The engine's own trainer of the recipe's method, on digits in the recipe's shape or on random images."""
    recipe = recipe_of(asked, asked.method, deterministic=not asked.fast)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, recipe) as opened:
        how = RunOptions(device=asked.device, threads=asked.threads, eager=eager)
        run = Run(recipe, opened, how, lambda event: print(event, file=sys.stderr))
        if asked.images:
            run.dataset = random_images(run.dataset, asked.images)
            run.loader = Loader(
                run.dataset,
                batch_size=recipe.batch_size,
                seed=0,
                augmentation=PRESETS[recipe.augment.preset],
                augment_seed=0,
                device=run.hardware.device,
            )
        trainer = run.trainer(run.plans[-1], rehearsal=True)
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
        trainer.step_index = number
        trainer.step(batch)
        val = trainer.loader.dataset.val
        predictions(trainer.students, trainer.loader, val, trainer.evaluated)


def epoch(trainer: Trainer) -> None:
    """One as the run has it, its checkpoint apart."""
    trainer.step_index = trainer.epochs_done = 0
    for _ in trainer.steps():
        pass
    trainer.end_epoch()


def graphs_against_eager(asked: argparse.Namespace, graphed: Trainer) -> dict[str, Any]:
    """Whole epochs, in turn."""
    eager = trainer_of(asked, eager=True)
    warm_up(eager, next(batches_of(eager)))
    rows = []
    for repeat in range(asked.repeats + 1):
        row = {name: timed(trainer, lambda t=trainer: epoch(t)) for name, trainer in (("g", graphed), ("e", eager))}  # type: ignore[misc]
        if repeat:  # the first pays for what the warm-up has left
            rows.append(row)
    num_steps = graphed.loader.num_steps
    return {
        "replayed": graphed_parts(graphed),
        "epoch_steps": num_steps,
        "epoch_graphed_s": spread([row["g"] for row in rows]),
        "epoch_eager_s": spread([row["e"] for row in rows]),
        "graphed_over_eager": spread([row["g"] / row["e"] for row in rows]),
        "step_graphed_ms": spread([1e3 * row["g"] / num_steps for row in rows]),
        "minutes_for_500_epochs": spread([500 * row["g"] / 60 for row in rows]),
    }


def graphed_parts(trainer: Trainer) -> list[str]:
    """What is replayed by now; the others are run as written, for the reason on stderr."""
    parts = (trainer.ordinary_step, trainer.meta_step, trainer.evaluated)
    return [part.name for part in parts if isinstance(part, GraphedCallable) and part.replay is not None]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--fast", action="store_true")
    asked = parser.parse_args()
    trainer = trainer_of(asked)
    if trainer.graphs.backend is None:
        sys.exit("no GPU that runs ahead of its host: there are no graphs to measure")
    warm_up(trainer, next(batches_of(trainer)))
    result: dict[str, Any] = {
        "hardware": machine(trainer),
        "recipe": asked.recipe,
        "method": asked.method,
        "coordinator": asked.coordinator if trainer.plan.learned else None,
        "students": dict(trainer.students.archs),
        **graphs_against_eager(asked, trainer),
    }
    print(text := json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

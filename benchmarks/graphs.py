"""Times whole epochs of the ladder on a GPU with and without CUDA graphs, pair by pair, and projects 500 epochs.

    python benchmarks/graphs.py [--recipe NAME] [--method M] [--precision P] [--coordinator ARCH] [--repeats 5]
                                [--images 50000] [--fast] [--out benchmarks/results/NAME.json]

Images: random images in 100 classes, a tenth of them val (50000 is the size of CIFAR-100's training set), or, with
`--images 0`, the built-in digits at the recipe's size; the default batch is 400. An epoch includes batches,
augmentation, steps, meta steps and evaluation on val. On a CPU there are no graphs and nothing to compare.
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


def trainer_of(args: argparse.Namespace, *, eager: bool = False) -> Trainer:
    """The engine's trainer for the recipe's method, on digits in the recipe's shape or on random images."""
    recipe = recipe_of(args, args.method, deterministic=not args.fast)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, recipe) as opened:
        run_options = RunOptions(device=args.device, threads=args.threads, eager=eager)
        run = Run(recipe, opened, run_options, lambda event: print(event, file=sys.stderr))
        if args.images:
            run.dataset = random_images(run.dataset, args.images)
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
    """Run steps and evaluations until all of them are replayed as graphs."""
    for number in (0, 1) * max(1, trainer.graphs.num_first):
        trainer.step_index = number
        trainer.step(batch)
        val = trainer.loader.dataset.val
        predictions(trainer.students, trainer.loader, val, trainer.evaluated)


def epoch(trainer: Trainer) -> None:
    """One epoch as in a run, without its checkpoint."""
    trainer.step_index = trainer.epochs_done = 0
    for _ in trainer.steps():
        pass
    trainer.end_epoch()


def graphs_against_eager(args: argparse.Namespace, graphed: Trainer) -> dict[str, Any]:
    """Times for whole epochs, with and without graphs in alternation."""
    eager = trainer_of(args, eager=True)
    warm_up(eager, next(batches_of(eager)))
    rows = []
    for repeat in range(args.repeats + 1):
        row = {name: timed(trainer, lambda t=trainer: epoch(t)) for name, trainer in (("g", graphed), ("e", eager))}  # type: ignore[misc]
        if repeat:  # the first completes the warm-up
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
    """The names of the parts that are replayed; the remaining parts run eagerly, for the reason given on stderr."""
    parts = (trainer.ordinary_step, trainer.meta_step, trainer.evaluated)
    return [part.name for part in parts if isinstance(part, GraphedCallable) and part.replay is not None]


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--fast", action="store_true")
    args = parser.parse_args()
    trainer = trainer_of(args)
    if trainer.graphs.backend is None:
        sys.exit("there are no CUDA graphs to measure here; run this benchmark on a GPU")
    warm_up(trainer, next(batches_of(trainer)))
    result: dict[str, Any] = {
        "hardware": machine(trainer),
        "recipe": args.recipe,
        "method": args.method,
        "coordinator": args.coordinator if trainer.plan.learned else None,
        "students": dict(trainer.students.archs),
        **graphs_against_eager(args, trainer),
    }
    print(text := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""One of several processes of a run, for test_processes: `python -m support.shards RANK WORLD FOLDER CASE…`."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mcd_cli.cli.startup import exit_now
from mcd_cli.engine.checkpoint import serialise
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.engine.trainer import Trainer
from mcd_cli.errors import McdError
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.recipe.loading import parse_recipe

from .runs import TINY

NUM_STEPS = 20
EVERY = 7  # C-NET learns at steps 0, 7 and 14
CASES: dict[str, dict[str, Any]] = {
    "paper": {"ema": {"decay": 0.9}},
    "mixed": {"augment": {**TINY["augment"], "mixup": 1.0, "cutmix": 1.0}},
    "mean-in-double": {"coordinator": {"normalise": "mean", "arch": "losses"}},
    "sync-in-double": {"coordinator": {"control": "shuffle"}, "sync_bn": True},
    "broken": {},
}


def trainer_of(case: str, folder: Path | None) -> Trainer:
    """The distillation stage of a tiny mc-distil run from a random start; an odd batch, so shards differ in size."""
    changes = CASES[case]
    recipe = parse_recipe(
        {
            **TINY,
            **changes,
            "batch_size": 63,
            "epochs": 2,
            "warm_start": {"epochs": 0},
            "coordinator": {**TINY["coordinator"], "every": EVERY, **changes.get("coordinator", {})},
        }
    )
    opened = None if folder is None else RunFolder.create(str(folder / case), recipe)
    run = Run(recipe, opened, RunOptions(device="cpu", threads=1), lambda event: None)
    if opened is not None:
        opened.close()
    torch.manual_seed(0)  # of the teacher, an untrained one
    trainer = run.trainer(run.plans[-1], rehearsal=True)
    return in_double(trainer) if case.endswith("in-double") else trainer


def in_double(trainer: Trainer) -> Trainer:
    """Every network in float64, and what comes in, too."""
    for network in (trainer.students, *trainer.coordination.networks, *trainer.teachers.values()):
        network.double().register_forward_pre_hook(lambda module, inputs: tuple(x.double() for x in inputs))
    return trainer


def walk(trainer: Trainer) -> None:
    """The first steps of the stage, epoch after epoch, without evaluation."""
    batches = (batch for epoch in range(trainer.plan.epochs) for batch in trainer.loader.epoch(epoch))
    for batch in itertools.islice(batches, NUM_STEPS):
        trainer.step(batch)


def main(rank: int, world: int, folder: Path, cases: list[str]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world)
    for case in cases:
        trainer = trainer_of(case, folder if rank == 0 else None)
        if case == "broken" and rank == 1:
            with torch.no_grad():
                next(trainer.students.parameters()).fill_(float("nan"))
        walk(trainer)
        (folder / f"{case}-{rank}.safetensors").write_bytes(serialise(trainer.state_dict().tensors, {}))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
    except McdError as error:
        print(error, file=sys.stderr)
        exit_now(error.exit_code)  # as the command does: gloo's destructors may abort where a peer has gone

"""How long a stage will take, from a few of its own steps on throwaway networks."""

from __future__ import annotations

import time

from mcd_cli.data.loader import Batch
from mcd_cli.engine.evaluation import predictions
from mcd_cli.engine.trainer import Trainer


def seconds_of_stage(epochs: int, trainer: Trainer) -> float:
    """Seconds: the method's pass before training, ordinary steps, meta steps at their rate, an evaluation per epoch.

    The trainer is spent: its students have moved.
    """
    batch = next(iter(trainer.loader.epoch(0)))
    start = time.perf_counter()
    trainer.prepare(trainer.processes.gather(batch.ids, batch.size).cpu())
    preparation = (time.perf_counter() - start) * len(trainer.loader.dataset.train) / batch.size
    section = trainer.plan.coordinator
    trainer.epochs_done = 1 if section.every > 1 else 0  # of an epoch in which C-NET does not learn
    for number in (0, 1) * trainer.graphs.num_first or (0,):  # the first steps pay for compilation, memory, graphs
        _timed_step(trainer, batch, number)
    ordinary = min(_timed_step(trainer, batch, number=1) for _ in range(2))
    trainer.epochs_done = 0
    meta = _timed_step(trainer, batch, number=0) if trainer.plan.method.learned else ordinary
    per_step = ordinary + max(0.0, meta - ordinary) / section.every
    sample = trainer.loader.dataset.val[: trainer.loader.batch_size]
    start = time.perf_counter()
    predictions(trainer.students, trainer.loader, sample)
    evaluation = (time.perf_counter() - start) * len(trainer.loader.dataset.val) / len(sample)
    return preparation + epochs * (per_step * trainer.loader.num_steps + evaluation)


def _timed_step(trainer: Trainer, batch: Batch, number: int) -> float:
    trainer.step_index = number
    start = time.perf_counter()
    trainer.step(batch)
    if batch.images.device.type != "cpu":
        batch.images.sum().item()  # wait for the device
    return time.perf_counter() - start

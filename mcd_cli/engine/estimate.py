"""Estimates the duration of a stage from a few of its steps on throwaway networks."""

from __future__ import annotations

import time

from mcd_cli.data.loader import Batch
from mcd_cli.engine.evaluation import predictions
from mcd_cli.engine.trainer import Trainer


def seconds_of_stage(epochs: int, trainer: Trainer) -> float:
    """Estimated seconds for a stage: preparation, ordinary and meta steps, and one evaluation per epoch.

    The trainer cannot be used afterwards, because its students have been trained.
    """
    batch = next(iter(trainer.loader.epoch(0)))
    start = time.perf_counter()
    trainer.prepare(trainer.processes.gather(batch.ids, batch.size).cpu())
    preparation = (time.perf_counter() - start) * len(trainer.loader.dataset.train) / batch.size
    section = trainer.plan.coordinator
    trainer.epochs_done = 1 if section.every > 1 else 0  # an epoch in which C-NET is not updated
    for number in (0, 1) * trainer.graphs.num_first or (0,):  # warm-up: compilation, memory, graphs
        _timed_step(trainer, batch, number)
    ordinary = min(_timed_step(trainer, batch, number=1) for _ in range(2))
    trainer.epochs_done = 0
    meta = _timed_step(trainer, batch, number=0) if trainer.plan.learned else ordinary
    per_step = ordinary + max(0.0, meta - ordinary) / section.every
    sample = trainer.loader.dataset.val[: trainer.loader.batch_size]
    start = time.perf_counter()
    for students in (trainer.students, *([] if trainer.ema is None else [trainer.ema.students])):
        predictions(students, trainer.loader, sample)
    evaluation = (time.perf_counter() - start) * len(trainer.loader.dataset.val) / len(sample)
    return preparation + epochs * (per_step * trainer.loader.num_steps + evaluation)


def _timed_step(trainer: Trainer, batch: Batch, number: int) -> float:
    trainer.step_index = number
    start = time.perf_counter()
    trainer.step(batch)
    if batch.images.device.type != "cpu":
        batch.images.sum().item()  # wait for the device
    return time.perf_counter() - start

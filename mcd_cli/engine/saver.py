"""When a run is saved, and what of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mcd_cli.engine.checkpoint import Checkpoints
from mcd_cli.engine.interrupt import Stop
from mcd_cli.engine.results import Result
from mcd_cli.engine.trainer import Trainer
from mcd_cli.errors import Interrupted
from mcd_cli.quantities import Interval
from mcd_cli.run_folder import RunFolder


class Saver:
    """Saves a run after an interval, at the end of an epoch and of a stage, and when a signal asks it to end.

    `about` is what every state of this run holds: what a resumed run must find unchanged, and the hardware.
    """

    def __init__(self, folder: RunFolder, checkpoints: Checkpoints, every: Interval, stop: Stop, about: Any) -> None:
        self.folder = folder
        self.checkpoints = checkpoints
        self.every = every
        self.stop = stop
        self.about: Mapping[str, Any] = about
        self.kept: list[str] = []
        self.saved_at = time.monotonic()

    def after_step(self, trainer: Trainer) -> None:
        """Save when it is time; when a signal came, save and end."""
        if self.stop:
            self.save(trainer)
            raise Interrupted(f"interrupted; go on with: {self.folder.resume_command}")
        steps, seconds = self.every.steps, self.every.seconds
        by_steps = steps is not None and trainer.number % steps == 0
        if by_steps or (seconds is not None and time.monotonic() - self.saved_at >= seconds):
            self.save(trainer)

    def save(self, trainer: Trainer | None) -> None:
        """The state of the stage at work; None: between two stages."""
        position = {
            **self.about,
            "stage": len(self.kept),
            "kept": self.kept,
            "metrics": self.folder.metrics_size(),
            "trainer": trainer.position() if trainer else {},
        }
        self.checkpoints.save(trainer.tensors() if trainer else {}, position)
        self.saved_at = time.monotonic()

    def keep(self, name: str, result: Result) -> None:
        """A finished stage: its results stand on their own, and the next state begins the stage after it."""
        self.kept.append(self.checkpoints.keep(name.replace("/", "."), result.tensors()))
        self.save(None)

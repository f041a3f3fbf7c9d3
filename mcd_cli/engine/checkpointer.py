"""Decides when a run saves checkpoints, writes them, and loads the one from which a run resumes."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

from mcd_cli.engine.checkpoint import Checkpoints, State, state_of_another
from mcd_cli.engine.events import Listener, WarningMessage
from mcd_cli.engine.results import Result
from mcd_cli.engine.signals import Stop
from mcd_cli.engine.trainer import Trainer
from mcd_cli.errors import Interrupted, UserError
from mcd_cli.ladder.folder import CHECKPOINT, RunFolder
from mcd_cli.ladder.metrics import EpochRecord
from mcd_cli.ops.distributed import Processes
from mcd_cli.quantities import Interval


class Checkpointer:
    """Saves a run at an interval, after each epoch and stage, and when a signal asks it to stop.

    folder: None in a process that does not write. `about` is stored in every state of this run: the settings that
    must be unchanged when it resumes, and the hardware.
    """

    def __init__(self, folder: RunFolder | None, processes: Processes, every: Interval) -> None:
        self.folder = folder
        self.processes = processes
        self.every = every
        self.about: Mapping[str, Any] = {}
        self.finished_stages: list[str] = []
        self.saved_at = time.monotonic()

    def load(self, emit: Listener) -> State | None:
        """The newest intact state, in every process; metrics written after it are deleted."""
        state = None
        if self.folder is not None:
            state = Checkpoints(self.folder / CHECKPOINT).load(lambda line: emit(WarningMessage(line)))
            with state_of_another():
                self.folder.cut_metrics(0 if state is None else state.position["metrics"])
        state = self.processes.broadcast(state)
        if state is not None:
            with state_of_another():
                self.finished_stages = [str(file) for file in state.position["kept"]]
        return state

    def load_stage(self, file: str) -> Result:
        """The result of a finished stage of this run, in every process."""
        tensors = {} if self.folder is None else Checkpoints(self.folder / CHECKPOINT).load_stage(file)
        return Result.of(self.processes.broadcast(tensors))

    def log(self, record: EpochRecord) -> None:
        """Append a record to metrics.jsonl."""
        if self.folder is not None:
            self.folder.log(record.line())

    def after_step(self, trainer: Trainer, stop: Stop) -> None:
        """Save if the interval is over. If any process got a signal, save and raise Interrupted."""
        if self.processes.any(bool(stop)):
            self.save(trainer)
            self.processes.any(True)  # no process ends before the state is written
            command = "" if self.folder is None else f"; resume with: {self.folder.resume_command}"
            raise Interrupted(f"interrupted{command}")
        steps, seconds = self.every.steps, self.every.seconds
        by_steps = steps is not None and trainer.step_index % steps == 0
        if by_steps or (seconds is not None and time.monotonic() - self.saved_at >= seconds):
            self.save(trainer)

    def save(self, trainer: Trainer | None) -> None:
        """Save the state of the running stage, or, with None, the state between two stages."""
        if self.folder is None:
            return
        state = State({}, {}) if trainer is None else trainer.state_dict()
        position = {
            **self.about,
            "stage": len(self.finished_stages),
            "kept": self.finished_stages,  # a key of older checkpoints; do not rename it
            "metrics": self.folder.sync_metrics(),
            "trainer": state.position,
        }
        Checkpoints(self.folder / CHECKPOINT).save(State(state.tensors, position))
        self.saved_at = time.monotonic()

    def save_stage(self, name: str, result: Result) -> None:
        """Save a finished stage's results to a separate file, and a state from which the next stage starts."""
        if self.folder is None:
            return
        file = Checkpoints(self.folder / CHECKPOINT).save_stage(name.replace("/", "."), result.tensors())
        self.finished_stages.append(file)
        self.save(None)


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError for the first setting that differs from when the run started."""
    for key, old, new in _differences(then, now):
        raise UserError(
            f"--resume: the run's {key} has changed (from {_shown(old)} to {_shown(new)}); "
            "undo the change, or start again in another folder"
        )


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The differences between two descriptions as `threads changed from 2 to 1; …`, or ""."""
    return "; ".join(f"{key} changed from {_shown(old)} to {_shown(new)}" for key, old, new in _differences(then, now))


def _differences(then: Any, now: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        for key in {**then, **now}:
            inner = f"{path}.{key}" if path else str(key)
            yield from _differences(then.get(key), now.get(key), inner)
    elif then != now:
        yield path, then, now


def _shown(value: Any) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) == 64 else text  # a hash

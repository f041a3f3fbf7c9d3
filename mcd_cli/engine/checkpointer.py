"""What of a run goes to its folder while it trains, and when; and what a run goes on from."""

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
    """Saves a run after an interval, at the end of an epoch and of a stage, and when a signal asks it to end.

    folder: None in a process that does not write. `about` is what every state of this run holds: what a resumed
    run must find unchanged, and the hardware.
    """

    def __init__(self, folder: RunFolder | None, processes: Processes, every: Interval) -> None:
        self.folder = folder
        self.processes = processes
        self.every = every
        self.about: Mapping[str, Any] = {}
        self.finished_stages: list[str] = []
        self.saved_at = time.monotonic()

    def load(self, emit: Listener) -> State | None:
        """The newest whole state, in every process; metrics written after it are forgotten."""
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
        """A finished stage of this run, in every process."""
        tensors = {} if self.folder is None else Checkpoints(self.folder / CHECKPOINT).load_stage(file)
        return Result.of(self.processes.broadcast(tensors))

    def log(self, record: EpochRecord) -> None:
        if self.folder is not None:
            self.folder.log(record.line())

    def after_step(self, trainer: Trainer, stop: Stop) -> None:
        """Save when it is time; when a signal came to any process, save and end."""
        if self.processes.any(bool(stop)):
            self.save(trainer)
            self.processes.any(True)  # nobody leaves before the state stands
            command = "" if self.folder is None else f"; go on with: {self.folder.resume_command}"
            raise Interrupted(f"interrupted{command}")
        steps, seconds = self.every.steps, self.every.seconds
        by_steps = steps is not None and trainer.step_index % steps == 0
        if by_steps or (seconds is not None and time.monotonic() - self.saved_at >= seconds):
            self.save(trainer)

    def save(self, trainer: Trainer | None) -> None:
        """The state of the stage at work; None: between two stages."""
        if self.folder is None:
            return
        state = State({}, {}) if trainer is None else trainer.state_dict()
        position = {
            **self.about,
            "stage": len(self.finished_stages),
            "kept": self.finished_stages,  # the name that every state of before has
            "metrics": self.folder.sync_metrics(),
            "trainer": state.position,
        }
        Checkpoints(self.folder / CHECKPOINT).save(State(state.tensors, position))
        self.saved_at = time.monotonic()

    def save_stage(self, name: str, result: Result) -> None:
        """A finished stage: its results stand on their own, and the next state begins the stage after it."""
        if self.folder is None:
            return
        file = Checkpoints(self.folder / CHECKPOINT).save_stage(name.replace("/", "."), result.tensors())
        self.finished_stages.append(file)
        self.save(None)


def refuse_changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises UserError that shows the first thing of a run's identity that is not what it began with."""
    for key, old, new in _differences(then, now):
        raise UserError(f"--resume: the run's {key} has changed ({_shown(old)} then, {_shown(new)} now); undo that")


def changes(then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """`threads 2 then, 1 now; …` of the hardware, or nothing."""
    return "; ".join(f"{key} {_shown(old)} then, {_shown(new)} now" for key, old, new in _differences(then, now))


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

"""Forwards a run's figures to experiment trackers, each record once, however often the run is resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from mcd_cli.engine.events import EpochEnded, Event, Listener, StageStarted, StepEnded, WarningMessage
from mcd_cli.errors import McdError, UserError, reason_of
from mcd_cli.files import write_whole
from mcd_cli.ladder.documents import read
from mcd_cli.ladder.folder import LOGGED
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.metrics import EpochRecord, read_metrics
from mcd_cli.loggers import LOGGERS
from mcd_cli.recipe.schema import Recipe

LADDER = "ladder"  # the group of the final figures


class Service(Protocol):
    """A run in a tracker, new or continued. Anything that it raises ends the logging, not the training."""

    run: str
    """How the tracker identifies the run, so that a resumed run continues it."""

    def __init__(self, folder: Path, run: str, recipe: Recipe) -> None:
        """Begin the run of this folder; `run` is "", or the identifier from before."""

    def log(self, group: str, step: int, values: Mapping[str, float]) -> None:
        """Write `values` at this step of a group (a stage)."""

    def picture(self, file: Path) -> None:
        """Store a PNG."""

    def close(self, finished: bool) -> None:
        """End the run; `finished`: whether the training is complete."""


@dataclass
class Sent:
    """What a tracker has: its name for the run, and the last step sent of each group."""

    run: str = ""
    steps: dict[str, int] = field(default_factory=dict)


_SENT = TypeAdapter(dict[str, Sent])


class Log:
    """The listener. It sends what the run's metrics.jsonl holds already, then every epoch as it ends.

    What each tracker has is recorded in the run's `loggers.json`. A tracker that fails later is left out with a
    warning.
    """

    def __init__(self, folder: Path, names: Sequence[str], recipe: Recipe, emit: Listener) -> None:
        """names: of the loggers, besides those that the run has used before.

        Raises UserError if a package is missing or a tracker cannot be reached.
        """
        self.path = folder / LOGGED
        self.batch_size = recipe.batch_size
        self.emit = emit
        self.since = time.perf_counter()
        self.first_step = self.last_step = 0
        self.sent = self._read()
        self.services: dict[str, Service] = {}
        for name in dict.fromkeys([*self.sent, *names]):
            self.services[name] = _open(name, folder, self.sent.setdefault(name, Sent()), recipe)
        for record in read_metrics(folder) if self.services else ():
            self._send(record.stage, record.step, figures(record))

    def __call__(self, event: Event) -> None:
        match event:
            case StageStarted():
                self._restart_clock(event.step)
            case StepEnded():
                self.last_step = event.step
            case EpochEnded(record):
                seconds = time.perf_counter() - self.since
                rate = (self.last_step - self.first_step) * self.batch_size / seconds
                self._send(record.stage, record.step, {**figures(record), "images_per_second": rate})
                self._restart_clock(self.last_step)
            case _:
                pass

    def finish(self, ladder: Ladder, pictures: Sequence[Path]) -> None:
        """Send the students' accuracies and costs, and the pictures; end the runs."""
        values: dict[str, float] = {}
        for student in ladder.students:
            accuracy = {"test_accuracy": student.accuracy.test, "val_accuracy": student.accuracy.val}
            cost = {"macs": student.macs, "params": student.params}
            values |= {f"{student.name}/{key}": float(value) for key, value in (accuracy | cost).items()}
        is_new = any(LADDER not in sent.steps for sent in self.sent.values())
        self._send(LADDER, 1, values)
        for name, service in list(self.services.items()) if is_new else ():
            for file in pictures:
                if file.is_file():
                    self._try(name, lambda service=service, file=file: service.picture(file))  # type: ignore[misc]
        self.close(finished=True)

    def close(self, finished: bool = False) -> None:
        for name, service in list(self.services.items()):
            self._try(name, lambda service=service: service.close(finished))  # type: ignore[misc]
        self.services = {}

    def _restart_clock(self, step: int) -> None:
        self.since, self.first_step, self.last_step = time.perf_counter(), step, step

    def _send(self, group: str, step: int, values: Mapping[str, float]) -> None:
        for name, service in list(self.services.items()):
            sent = self.sent[name]
            if step <= sent.steps.get(group, 0):
                continue
            if self._try(name, lambda service=service: service.log(group, step, values)):  # type: ignore[misc]
                sent.run, sent.steps[group] = service.run, step
        if self.services:
            write_whole(self.path, _SENT.dump_json(self.sent, indent=2) + b"\n")

    def _try(self, name: str, action: Any) -> bool:
        try:
            action()
        except Exception as error:  # whatever a tracker raises, the run goes on
            self.services.pop(name, None)
            self.emit(WarningMessage(f"{name}: {reason_of(error)}; the run continues without it"))
            return False
        return True

    def _read(self) -> dict[str, Sent]:
        if not self.path.is_file():
            return {}
        try:
            return read(_SENT, self.path.read_bytes())
        except ValueError as error:
            raise UserError(f"{self.path}: {error}; remove it to log this run as a new one") from None


def figures(record: EpochRecord) -> dict[str, float]:
    """A record's figures by name, such as `resnet10-s/loss/ce`."""
    return {"epoch": float(record.epoch), "lr": record.lr, **dict(_of_students(record))}


def _of_students(record: EpochRecord) -> Iterator[tuple[str, float]]:
    for name, student in record.students.items():
        for key in ("train_accuracy", "val_accuracy", "ema_val_accuracy", "total_weight"):
            value = getattr(student, key)
            if value is not None:
                yield f"{name}/{key}", value
        groups = (("loss", student.losses), ("weight", student.weights), ("spread", student.spread or {}))
        for group, by_loss in groups:
            for loss, value in by_loss.items():
                yield f"{name}/{group}/{loss}", value


def _open(name: str, folder: Path, sent: Sent, recipe: Recipe) -> Service:
    package = LOGGERS[LOGGERS.check(name)].package
    if find_spec(package) is None:
        raise UserError(f"--log {name} needs the package {package}; run pip install 'mcd-cli[{name}]'")
    try:
        service: Service = LOGGERS.load(name)(folder, sent.run, recipe)
    except McdError:
        raise
    except Exception as error:
        raise UserError(f"--log {name}: {reason_of(error)}") from None
    return service

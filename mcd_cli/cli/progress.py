"""The progress of a run on stderr: bars, a line per epoch, warnings."""

from __future__ import annotations

from collections.abc import Mapping

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from mcd_cli.engine.events import EpochEnded, Event, InfoMessage, StageEnded, StageStarted, StepEnded, WarningMessage
from mcd_cli.ladder.metrics import EpochRecord
from mcd_cli.reporting.console import talk


class View:
    """Shows the events of a run: a bar on a terminal, a line per epoch elsewhere, warnings always."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = talk()
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.num_epochs: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case WarningMessage(text):
                self.console.print(Text.assemble(("warning: ", "yellow"), text))
            case _ if self.quiet:
                return
            case InfoMessage(text):
                self.console.print(text)
            case StageStarted():
                self._start(event)
            case StepEnded(_, step):
                if self.progress is not None and self.task is not None:
                    self.progress.update(self.task, completed=step)
            case EpochEnded(record):
                self._epoch(record)
            case StageEnded(stage, accuracy):
                self.close()
                self.console.print(f"{stage}: {_accuracies(accuracy)} on val at the best epoch")

    def say(self, text: str) -> None:
        self(InfoMessage(text))

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _start(self, event: StageStarted) -> None:
        self.num_epochs[event.stage] = event.num_epochs
        resumed = f", resuming from step {event.step}" if event.step else ""
        self.console.print(f"{event.stage}: {', '.join(event.students)}, {event.num_epochs} epochs{resumed}")
        if self.console.is_terminal:
            self.progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
            )
            self.task = self.progress.add_task(event.stage, total=event.num_steps, completed=event.step)
            self.progress.start()

    def _epoch(self, record: EpochRecord) -> None:
        accuracy = {name: student.val_accuracy for name, student in record.students.items()}
        if self.progress is not None and self.task is not None:
            mean = sum(accuracy.values()) / len(accuracy)
            self.progress.update(self.task, description=f"{record.stage}  val {mean:.1%}")
        else:
            done = f"{record.epoch}/{self.num_epochs[record.stage]}"
            self.console.print(f"{record.stage} {done}: {_accuracies(accuracy)} on val")


def _accuracies(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())

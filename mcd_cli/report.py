"""What a person sees on a terminal: the live view of a run, and its table."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mcd_cli.console import print_json, results, table, talk
from mcd_cli.engine.events import EpochEnded, Event, Said, StageEnded, StageStarted, Stepped, Warned
from mcd_cli.errors import UserError
from mcd_cli.ladder import MANIFEST, Ladder
from mcd_cli.quantities import show_count, show_size

Z95 = 1.96  # standard errors: 95 % of a normal distribution


class View:
    """The live view on stderr: a bar on a terminal, a line per epoch elsewhere, warnings always."""

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.console = talk()
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.num_epochs: dict[str, int] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case Warned(text):
                self.console.print(Text.assemble(("warning: ", "yellow"), text))
            case _ if self.quiet:
                return
            case Said(text):
                self.console.print(text)
            case StageStarted():
                self._start(event)
            case Stepped(_, step):
                if self.progress is not None and self.task is not None:
                    self.progress.update(self.task, completed=step)
            case EpochEnded(record):
                self._epoch(record)
            case StageEnded(stage, accuracy):
                self.close()
                self.console.print(f"{stage}: {_accuracies(accuracy)} on V at its best")

    def say(self, text: str) -> None:
        self(Said(text))

    def close(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None

    def _start(self, event: StageStarted) -> None:
        self.num_epochs[event.stage] = event.num_epochs
        going_on = f", going on from step {event.step}" if event.step else ""
        self.console.print(f"{event.stage}: {', '.join(event.students)}, {event.num_epochs} epochs{going_on}")
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

    def _epoch(self, record: Mapping[str, Any]) -> None:
        accuracy = {name: student["val_accuracy"] for name, student in record["students"].items()}
        if self.progress is not None and self.task is not None:
            mean = sum(accuracy.values()) / len(accuracy)
            self.progress.update(self.task, description=f"{record['stage']}  V {mean:.1%}")
        else:
            done = f"{record['epoch']}/{self.num_epochs[record['stage']]}"
            self.console.print(f"{record['stage']} {done}: {_accuracies(accuracy)} on V")


def _accuracies(accuracy: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1%}" for name, value in accuracy.items())


def ladder_table(ladder: Ladder, console: Console) -> Table:
    """The ladder as people compare it; accuracies on the test set, ± is 95 %."""
    warm_start = "CE\n(warm start)" if console.is_terminal else "CE (warm start)"  # 80 columns are enough
    drawn = table(console, "student", "MACs", "params", "bytes", warm_start, ladder.method, "gain")
    for column in drawn.columns:
        column.no_wrap = True
    for student in ladder.students:
        accuracy = student.accuracy
        error = Z95 * standard_error(accuracy.test, num_test_images(ladder))
        drawn.add_row(
            student.name,
            show_count(student.macs),
            show_count(student.params, 3),
            show_size(student.bytes, 3),
            "-" if accuracy.ce is None else f"{accuracy.ce:.1%}",
            f"{accuracy.test:.1%} ± {100 * error:.1f}",
            "-" if accuracy.ce is None else shown_gain(accuracy.test - accuracy.ce, accuracy.gain_p),
        )
    return drawn


def caption(ladder: Ladder) -> str:
    """What the table's figures were measured on."""
    teacher = "" if ladder.teacher is None else f"; teacher {ladder.teacher.arch} {ladder.teacher.accuracy.test:.1%}"
    return f"{num_test_images(ladder):,} test images, seed {ladder.seed} (n = 1); ± and noise at 95 %{teacher}"


def num_test_images(ladder: Ladder) -> int:
    """Raises UserError where the manifest does not say."""
    num = ladder.dataset.sizes.get("test", 0)
    if not num:
        raise UserError("the manifest does not say how many test images there were (dataset.sizes.test)")
    return num


def standard_error(accuracy: float, num_images: int) -> float:
    """Of an accuracy measured on that many images (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def shown_gain(gain: float, p: float | None) -> str:
    return f"{100 * gain:+.1f}" + (" (within noise)" if p is not None and p > 0.05 else "")


def print_ladder(ladder: Ladder, json_output: bool) -> None:
    """The result on stdout: a table, or the manifest as one JSON document."""
    if json_output:
        assert ladder.folder is not None
        document = json.loads((ladder.folder / MANIFEST).read_text(encoding="utf-8"))
        print_json(document | {"run": str(ladder.folder)})
        return
    console = results()
    console.print(ladder_table(ladder, console))
    console.print(caption(ladder))

"""The ladder as a table on a terminal."""

from __future__ import annotations

import math
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from mcd_cli.errors import UserError
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.schema import StudentEntry
from mcd_cli.quantities import show_count, show_size
from mcd_cli.reporting.console import print_json, results, table

SCORES = ("NLL", "ECE")
SCORES_ARE = "NLL (nats) and ECE (15 bins): on test, at the temperature that was fitted on val"
Z95 = 1.96  # standard errors: 95 % of a normal distribution


def ladder_table(ladder: Ladder, console: Console) -> Table:
    """The ladder as a table; accuracies are on the test set, ± is the 95 % interval. With NLL and ECE if they fit."""
    drawn = _with_columns(ladder, console, scored=True)
    needed = console.measure(drawn, options=console.options.update(max_width=10_000)).maximum
    return drawn if needed <= console.width else _with_columns(ladder, console, scored=False)


def _with_columns(ladder: Ladder, console: Console, *, scored: bool) -> Table:
    warm_start = "CE\n(warm start)" if console.is_terminal else "CE (warm start)"  # fits into 80 columns
    drawn = table(console, "student", "MACs", "params", "bytes", warm_start, ladder.method, "gain", *SCORES * scored)
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
            *shown_scores(student, "{:.1%}".format, "-") * scored,
        )
    return drawn


def shown_scores(student: StudentEntry, show: Callable[[float], str], missing: str) -> tuple[str, str]:
    """NLL and ECE on test of the calibrated probabilities; show: of a fraction."""
    score = None if student.calibration is None else student.calibration.scaled.get("test")
    return (missing, missing) if score is None else (f"{score.nll:.3f}", show(score.ece))


def caption(ladder: Ladder) -> str:
    """The data and the teacher behind the table's figures."""
    teacher = "" if ladder.teacher is None else f"; teacher {ladder.teacher.arch} {ladder.teacher.accuracy.test:.1%}"
    return f"{num_test_images(ladder):,} test images, seed {ladder.seed} (n = 1); ± and noise at 95 %{teacher}"


def num_test_images(ladder: Ladder) -> int:
    """The number of test images. Raises UserError if the manifest does not say."""
    num = ladder.dataset.sizes.get("test", 0)
    if not num:
        raise UserError("the manifest does not say how many test images there were (dataset.sizes.test)")
    return num


def standard_error(accuracy: float, num_images: int) -> float:
    """The standard error of an accuracy measured on that many images (binomial)."""
    return math.sqrt(accuracy * (1 - accuracy) / num_images)


def shown_gain(gain: float, p: float | None) -> str:
    return f"{100 * gain:+.1f}" + (" (within noise)" if p is not None and p > 0.05 else "")


def print_ladder(ladder: Ladder, json_output: bool) -> None:
    """Print the result on stdout: a table, or the manifest as one JSON document."""
    if json_output:
        assert ladder.folder is not None
        print_json(ladder.document() | {"run": str(ladder.folder)})
        return
    console = results()
    drawn = ladder_table(ladder, console)
    console.print(drawn)
    console.print(caption(ladder))
    if str(drawn.columns[-1].header) == SCORES[-1]:
        console.print(SCORES_ARE)

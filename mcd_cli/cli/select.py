"""`mcd select`: prints the student's name on stdout and the reasons on stderr. Never imports torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from mcd_cli.errors import unknown
from mcd_cli.ladder.budget import Budget, Candidate, Choice, Limits, Miss
from mcd_cli.ladder.latency import hardware_key, recorded
from mcd_cli.ladder.manifest import Ladder, find_run, load_ladder
from mcd_cli.ladder.schema import StudentEntry
from mcd_cli.ladder.variants import INT8, OTHERS, Variant
from mcd_cli.quantities import show_count, show_ms, show_size
from mcd_cli.reporting.console import print_json, table_that_fits, talk

PRINTED = ("name", "weights", "onnx")


def select(
    run: str | Path | None = None,
    *,
    threads: int = 1,
    format: str | None = None,
    print_: str = "name",
    json_output: bool = False,
    quiet: bool = False,
    **limits: Unpack[Limits],
) -> None:
    """Print the student of a run (default: the newest) that has the highest accuracy on val within the limits.

    With `min_accuracy` or `within`, it is the cheapest of those that are accurate enough.
    format: among the files of this format, instead of onnx and int8. print_: its name, the path of its weights (int8
    has none and is then left out), or the path of its file. Raises NothingFits after the explanation (and the JSON
    document, with "student": null); UserError for a limit that is not a quantity or cannot be measured yet, and for a
    missing file.
    """
    if format is not None and format not in OTHERS:
        raise unknown("format", format, OTHERS)
    printed = PRINTED if format is None else ("name", format)
    if print_ not in printed:
        raise unknown("value of --print", print_, printed)
    budget = Budget.parse(**limits)
    ladder = load_ladder(find_run(run))
    choice = ladder.explain(budget, int8=print_ != "weights", threads=threads, format=format)
    if not quiet:
        _explain(ladder, choice, threads)
    if json_output:
        print_json(_document(ladder, choice))
    chosen = choice.demand()
    if not json_output:
        print(_printed(ladder, chosen, print_))


def _printed(ladder: Ladder, chosen: Variant, what: str) -> str:
    if what == "name":
        return chosen.name
    assert ladder.folder is not None
    return str(ladder.folder / chosen.student.weights if what == "weights" else chosen.deployed())


def _explain(ladder: Ladder, choice: Choice, threads: int) -> None:
    console, budget = talk(), choice.budget
    console.print(f"{ladder.folder}: {str(budget) or 'no limit'}; {_asked(budget)}; test accuracy is only shown")
    columns = _columns(choice)
    limited = {COLUMN_OF[name] for name in budget.limits} | {COLUMN_OF[f"max_{budget.by}"]}
    gives_way = [column for column in GIVES_WAY if column in columns and column not in limited]
    rows = [[column(candidate) for column in columns.values()] for candidate in choice.candidates]
    chosen = next((i for i, candidate in enumerate(choice.candidates) if candidate.variant is choice.chosen), -1)
    drawn = table_that_fits(console, list(columns), rows, gives_way, bold=chosen)
    console.print(drawn)
    timed = "latency" in columns
    if "front" in map(str, (column.header for column in drawn.columns)):
        console.print(f"front *: no other is as accurate on val with as few MACs, bytes{' and milliseconds' * timed}")
    if timed:
        here = hardware_key(threads)
        variants = [candidate.variant for candidate in choice.candidates]
        is_new = any(recorded(variant.student, variant.format, 1, here) is None for variant in variants)
        runtime = next((f"; {v.format} in its own runtime" for v in variants if v.format in OTHERS), "")
        console.print(f"latency: {budget.percentile} of one image on {here}{runtime}{', measured now' * is_new}")
    if budget.within is not None and any(INT8 in student.exported for student in ladder.students):
        console.print("int8 is left out: its predictions on val, which --within compares, are not stored")
    missing = [candidate for candidate in choice.candidates if not candidate.fits]
    for candidate in sorted(missing, key=lambda candidate: (candidate.excess, candidate is not choice.nearest)):
        console.print(f"{'nearest miss' if candidate is choice.nearest else 'misses'}: {candidate}")
    if choice.rival is not None:
        console.print(_rival(*choice.rival))


def _asked(budget: Budget) -> str:
    if not budget.wants_cheapest:
        return "the most accurate on val"
    least = {"macs": "fewest MACs", "params": "fewest parameters", "size": "smallest file", "latency": "least latency"}
    enough = "accurate enough on val" if budget.within is None else f"at most {_errors(budget.within)} behind on val"
    return f"the cheapest ({least[budget.by]}) that is {enough}"


def _errors(number: float) -> str:
    return f"{number:g} standard error{'s' * (number != 1)}"


def _rival(rival: Candidate, errors: int) -> str:
    """One line on a difference that can be chance."""
    gap, student = rival.gap, rival.variant.student
    assert gap is not None
    behind = f"{100 * gap.behind:.1f} points behind on val ({gap.lost} lost, {gap.gained} gained of {gap.num:,} images)"
    return (
        f"within chance: {student.name} has {show_count(student.macs)} MACs and is {behind}, "
        f"{gap.errors:.1f} standard errors; --within {errors}se chooses it"
    )


# The column that shows what a limit is about.
COLUMN_OF = {
    "max_macs": "MACs",
    "max_params": "params",
    "max_size": "size",
    "max_latency": "latency",
    "min_accuracy": "val %",
}
GIVES_WAY = ("of", "front", "test %", "params", "size", "latency", "MACs", "val %")
"""The columns that a narrow terminal does without, the first one first; limited ones stay."""


def _columns(choice: Choice) -> dict[str, Callable[[Candidate], str]]:
    """The table: heading → the cell of a candidate."""

    def student(candidate: Candidate) -> StudentEntry:
        return candidate.variant.student

    def latency(candidate: Candidate) -> str:
        return "-" if candidate.variant.latency_ms is None else show_ms(candidate.variant.latency_ms, 3)

    def test(candidate: Candidate) -> str:
        return f"{100 * student(candidate).accuracy.test:.2f}" if candidate.variant.format != INT8 else "-"

    def behind(candidate: Candidate) -> str:
        return "-" if candidate.gap is None else f"{candidate.gap.errors:.1f}se"

    def verdict(candidate: Candidate) -> str:
        if candidate.variant is choice.chosen:
            return "chosen"
        too_far = within is not None and candidate.gap is not None and candidate.gap.errors > within
        return "misses" if not candidate.fits else "worse" if too_far else "fits"

    within = choice.budget.within
    timed = any(candidate.variant.latency_ms is not None for candidate in choice.candidates)
    return {
        "student": lambda candidate: candidate.variant.name,
        "verdict": verdict,
        "MACs": lambda candidate: show_count(student(candidate).macs),
        "params": lambda candidate: show_count(student(candidate).params),
        "size": lambda candidate: show_size(candidate.variant.bytes),
        "of": lambda candidate: candidate.variant.measured_by,
        **({"latency": latency} if timed else {}),
        "val %": lambda candidate: f"{100 * candidate.variant.val:.2f}",
        **({} if within is None else {"behind": behind}),
        "test %": test,
        "front": lambda candidate: "*" if candidate.on_front else "",
    }


def _document(ladder: Ladder, choice: Choice) -> dict[str, Any]:
    """The JSON document. Numbers are in base units: MACs, bytes, milliseconds, fractions, standard errors."""
    file = None if choice.chosen is None or choice.chosen.file is None else str(choice.chosen.file)
    is_other = choice.chosen is not None and choice.chosen.format in OTHERS
    return {
        "run": str(ladder.folder),
        "student": choice.chosen and choice.chosen.name,
        "onnx": None if file is None or is_other else file,
        "file": file,
        "budget": dict(choice.budget.limits),
        "percentile": choice.budget.percentile,
        "within": choice.budget.within,
        "by": choice.budget.by if choice.budget.wants_cheapest else None,
        "nearest_miss": choice.nearest and choice.nearest.variant.name,
        "students": [_candidate(candidate) for candidate in choice.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    variant, student = candidate.variant, candidate.variant.student
    accuracy = asdict(student.accuracy) if variant.format != INT8 else {"val": variant.val}
    return {
        "name": variant.name,
        "arch": student.arch,
        "format": variant.format,
        "macs": student.macs,
        "params": student.params,
        "bytes": variant.bytes,
        "bytes_of": variant.measured_by.lower(),
        "latency_ms": variant.latency_ms,
        "accuracy": accuracy,
        "calibration": asdict(student.calibration) if variant.format != INT8 and student.calibration else None,
        "on_front": candidate.on_front,
        "gap": candidate.gap and asdict(candidate.gap),
        "fits": candidate.fits,
        "misses": [_miss(miss) for miss in candidate.misses],
    }


def _miss(miss: Miss) -> dict[str, Any]:
    return {"limit": miss.limit, "need": miss.need, "budget": miss.budget, "excess": miss.excess}

"""`mcd select`: prints the student's name on stdout and the reasons on stderr. Never imports torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Unpack

from mcd_cli.errors import unknown
from mcd_cli.ladder.budget import Budget, Candidate, Choice, Limits
from mcd_cli.ladder.latency import hardware_key, recorded
from mcd_cli.ladder.manifest import Ladder, find_run, load_ladder
from mcd_cli.ladder.variants import FLOAT32, Variant
from mcd_cli.quantities import show_count, show_ms, show_size
from mcd_cli.reporting.console import print_json, table, talk

PRINTED = ("name", "weights", "onnx")


def select(
    run: str | Path | None = None,
    *,
    threads: int = 1,
    print_: str = "name",
    json_output: bool = False,
    quiet: bool = False,
    **limits: Unpack[Limits],
) -> None:
    """Print the student of a run (default: the newest) that has the highest accuracy on val within the limits.

    print_: its name, the path of its weights (int8 has none and is then left out), or the path of its ONNX file. Raises
    NothingFits after the explanation (and the JSON document, with "student": null); UserError for a limit that
    is not a quantity or cannot be measured yet, and for a missing ONNX file.
    """
    if print_ not in PRINTED:
        raise unknown("value of --print", print_, PRINTED)
    budget = Budget.parse(**limits)
    ladder = load_ladder(find_run(run))
    choice = ladder.explain(budget, int8=print_ != "weights", threads=threads)
    if not quiet:
        _explain(ladder, choice, threads)
    if json_output:
        print_json(_document(ladder, choice))
    chosen = choice.demand()
    if not json_output:
        print(_printed(ladder, chosen, print_))


def _printed(ladder: Ladder, chosen: Variant, what: str) -> str:
    if what == "onnx":
        return str(chosen.onnx())
    assert ladder.folder is not None
    return chosen.name if what == "name" else str(ladder.folder / chosen.student.weights)


def _explain(ladder: Ladder, choice: Choice, threads: int) -> None:
    console = talk()
    console.print(
        f"{ladder.folder}: {str(choice.budget) or 'no limit'}; chosen by accuracy on val; test accuracy is only shown"
    )
    timed = any(candidate.variant.latency_ms is not None for candidate in choice.candidates)
    percentile = choice.budget.percentile
    columns = ["student", "MACs", "params", "size", "of", *[percentile] * timed, "val %", "test %", "front", "fits"]
    drawn = table(console, *columns)
    for candidate in choice.candidates:
        drawn.add_row(*_row(candidate, timed), style="bold" if candidate.variant is choice.chosen else None)
    console.print(drawn)
    console.print(f"front *: no other is as accurate on val with as few MACs, bytes{' and milliseconds' * timed}")
    if timed:
        here = hardware_key(threads)
        variants = [candidate.variant for candidate in choice.candidates]
        is_new = any(recorded(variant.student, variant.format, 1, here) is None for variant in variants)
        console.print(f"{percentile}: latency of one image on {here}{', measured now' * is_new}")
    missing = [candidate for candidate in choice.candidates if not candidate.fits]
    for candidate in sorted(missing, key=lambda candidate: (candidate.excess, candidate is not choice.nearest)):
        console.print(f"{'nearest miss' if candidate is choice.nearest else 'misses'}: {candidate}")


def _row(candidate: Candidate, timed: bool) -> list[str]:
    variant = candidate.variant
    latency = "-" if variant.latency_ms is None else show_ms(variant.latency_ms, 3)
    return [
        variant.name,
        show_count(variant.student.macs),
        show_count(variant.student.params),
        show_size(variant.bytes),
        variant.measured_by,
        *[latency] * timed,
        f"{100 * variant.val:.2f}",
        f"{100 * variant.student.accuracy.test:.2f}" if variant.format == FLOAT32 else "-",
        "*" if candidate.on_front else "",
        "yes" if candidate.fits else "no",
    ]


def _document(ladder: Ladder, choice: Choice) -> dict[str, Any]:
    """The JSON document. Numbers are in base units: MACs, bytes, milliseconds, fractions."""
    return {
        "run": str(ladder.folder),
        "student": choice.chosen and choice.chosen.name,
        "onnx": choice.chosen and choice.chosen.file and str(choice.chosen.file),
        "budget": dict(choice.budget.limits),
        "percentile": choice.budget.percentile,
        "nearest_miss": choice.nearest and choice.nearest.variant.name,
        "students": [_candidate(candidate) for candidate in choice.candidates],
    }


def _candidate(candidate: Candidate) -> dict[str, Any]:
    variant, student = candidate.variant, candidate.variant.student
    accuracy = asdict(student.accuracy) if variant.format == FLOAT32 else {"val": variant.val}
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
        "calibration": asdict(student.calibration) if variant.format == FLOAT32 and student.calibration else None,
        "on_front": candidate.on_front,
        "fits": candidate.fits,
        "misses": [asdict(miss) | {"excess": miss.excess} for miss in candidate.misses],
    }

"""`mcd select`: the student's name on stdout, the reasons on stderr. No torch."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from mcd_cli.budget import Budget, Candidate, Choice, Quantity
from mcd_cli.console import print_json, table, talk
from mcd_cli.ladder import Ladder, find_run, load_ladder
from mcd_cli.quantities import show_count, show_ms, show_size


def select(
    run: str | Path | None = None,
    *,
    max_macs: Quantity | None = None,
    max_params: Quantity | None = None,
    max_size: Quantity | None = None,
    max_latency: Quantity | None = None,
    min_accuracy: Quantity | None = None,
    json_output: bool = False,
    quiet: bool = False,
) -> None:
    """Print the most accurate student on V of a run (default: the newest) that fits every limit.

    Raises NothingFits, after the explanation (and the JSON document, with "student": null); UserError for a
    limit that is no quantity or is not measured yet.
    """
    budget = Budget.parse(
        max_macs=max_macs,
        max_params=max_params,
        max_size=max_size,
        max_latency=max_latency,
        min_accuracy=min_accuracy,
    )
    ladder = load_ladder(find_run(run))
    choice = ladder.explain(budget)
    if json_output:
        print_json(_document(ladder, choice))
    if not quiet:
        _explain(ladder, choice)
    chosen = choice.demand()
    if not json_output:
        print(chosen.name)


def _explain(ladder: Ladder, choice: Choice) -> None:
    console = talk()
    console.print(f"{ladder.folder}: {str(choice.budget) or 'no limit'}; accuracy on V decides, test is only shown")
    timed = any(candidate.student.latency for candidate in choice.candidates)
    columns = ["student", "MACs", "params", "weights", *["latency"] * timed, "V %", "test %", "front", "fits"]
    drawn = table(console, *columns)
    for candidate in choice.candidates:
        drawn.add_row(*_row(candidate, timed), style="bold" if candidate.student is choice.chosen else None)
    console.print(drawn)
    console.print("front *: no other student is as accurate on V for as few MACs; weights: size of the float32 file")
    missing = [candidate for candidate in choice.candidates if not candidate.fits]
    for candidate in sorted(missing, key=lambda candidate: candidate.excess):
        console.print(f"{'nearest miss' if candidate is choice.nearest else 'misses'}: {candidate}")


def _row(candidate: Candidate, timed: bool) -> list[str]:
    student = candidate.student
    latency = "-" if student.latency_ms is None else show_ms(student.latency_ms)
    return [
        student.name,
        show_count(student.macs),
        show_count(student.params),
        show_size(student.bytes),
        *[latency] * timed,
        f"{100 * student.accuracy.val:.2f}",
        f"{100 * student.accuracy.test:.2f}",
        "*" if candidate.on_front else "",
        "yes" if candidate.fits else "no",
    ]


def _document(ladder: Ladder, choice: Choice) -> dict[str, Any]:
    """Numbers unscaled: MACs, bytes, milliseconds, fractions."""
    return {
        "run": str(ladder.folder),
        "student": choice.chosen and choice.chosen.name,
        "budget": choice.budget.limits(),
        "nearest_miss": choice.nearest and choice.nearest.student.name,
        "students": [
            {
                "name": candidate.student.name,
                "arch": candidate.student.arch,
                "macs": candidate.student.macs,
                "params": candidate.student.params,
                "bytes": candidate.student.bytes,
                "latency_ms": candidate.student.latency_ms,
                "accuracy": asdict(candidate.student.accuracy),
                "on_front": candidate.on_front,
                "fits": candidate.fits,
                "misses": [asdict(miss) | {"excess": miss.excess} for miss in candidate.misses],
            }
            for candidate in choice.candidates
        ],
    }

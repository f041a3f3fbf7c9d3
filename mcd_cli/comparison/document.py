"""comparison.json: every figure of a comparison, unscaled (fractions, seconds), and how it was come by."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

import mcd_cli
from mcd_cli.comparison.cells import Trained
from mcd_cli.comparison.plan import Plan, differing
from mcd_cli.comparison.statistics import LEVEL, RESAMPLES, Contrast, contrasts
from mcd_cli.comparison.verdict import SUBJECT, Pair, Question, claimed, question_for, sentences, subjects_of
from mcd_cli.recipe.loading import lay_over
from mcd_cli.recipe.schema import Recipe

SCHEMA = 1
ENDPOINT = "test accuracy at the last epoch, averaged over students"
FEW_UPDATES = 500


@dataclass(frozen=True, eq=False)
class Entry:
    """A row: a contender with its cells, one per seed; same_as: another row that it is by definition."""

    name: str
    cells: tuple[Trained, ...]
    same_as: str | None = None

    @property
    def students(self) -> list[str]:
        return list(self.cells[0].last)

    @property
    def total_weight(self) -> float:
        weights = [weight for cell in self.cells for weight in cell.total_weight.values()]
        return sum(weights) / len(weights)

    def right(self, students: Iterable[str]) -> npt.NDArray[np.float32]:
        """Which test images are right at the last epoch, averaged over these students: [seeds, images]."""
        return np.stack([np.mean([cell.last[s] for s in students], axis=0, dtype=np.float32) for cell in self.cells])


def entries(plan: Plan, trained: Mapping[tuple[str, int], Trained]) -> tuple[list[Entry], dict[str, Any]]:
    """The rows in the order asked for; of a group only the member that V chooses, under the group's name.

    V: accuracy at each student's best epoch on V, averaged over students and seeds. Returns the choices, too.
    """
    rows: list[Entry] = []
    groups: dict[str, dict[str, float]] = {}
    first: dict[str, str] = {}
    for contender in plan.contenders:
        cells = tuple(trained[contender.name, seed] for seed in plan.seeds)
        if contender.group is not None:
            val = [student.accuracy.val for cell in cells for student in cell.ladder.students]
            members = groups.setdefault(contender.group, {})
            members[contender.name] = sum(val) / len(val)
            if _best(members) != contender.name:
                continue
            rows = [row for row in rows if row.name != contender.group]
            rows.append(Entry(contender.group, cells))
            continue
        owner = cells[0].cell.name
        same_as = first.setdefault(owner, contender.name)
        rows.append(Entry(contender.name, cells, None if same_as == contender.name else same_as))
    choices: dict[str, Any] = {group: {"chosen": _best(on_v), "val": on_v} for group, on_v in groups.items()}
    return rows, choices


def _best(on_val: Mapping[str, float]) -> str:
    return max(on_val, key=lambda name: on_val[name])


def describe(plan: Plan, trained: Mapping[tuple[str, int], Trained]) -> dict[str, Any]:
    """The whole document."""
    rows, choices = entries(plan, trained)
    by_name = {row.name: row for row in rows}
    against = {name: _against(name, rows) for name in ("kd", "ce")}
    per_student = _per_student("kd", rows)
    a_cell = rows[0].cells[0]
    ladder = a_cell.ladder
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "version": mcd_cli.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "endpoint": ENDPOINT,
        "dataset": {
            "name": ladder.dataset.name,
            "num_classes": len(ladder.dataset.classes),
            "input_shape": list(ladder.dataset.input_shape),
            "split_seed": ladder.dataset.split_seed,
            "fingerprint": ladder.dataset.fingerprint,
            "sizes": ladder.dataset.sizes,
            "label_noise": plan.base.label_noise,
        },
        "teacher": None if ladder.teacher is None else asdict(ladder.teacher),
        "seeds": list(plan.seeds),
        "recipe": plan.base.model_dump(mode="json", exclude={"data_root", "checkpoint"}),
        "hardware": _distinct([cell.ladder.hardware for row in rows for cell in row.cells]),
        "students": _students(rows),
        "warm_start": _warm_start(rows),
        "statistics": {"level": LEVEL, "resamples": RESAMPLES, "correction": "Holm, within each family"},
        "tuned": choices,
        "contenders": [
            {
                **_row(row),
                "method": row.cells[0].cell.recipe.method,
                "cohort": _is_cohort(row, plan.base),
                "vs_kd": _plain(against["kd"].get(row.name)),
                "vs_ce": _plain(against["ce"].get(row.name)),
                "students": {
                    name: {**_of_student(row, name), "vs_kd": _plain(per_student.get((row.name, name)))}
                    for name in row.students
                },
            }
            for row in rows
        ],
    }
    return document | _verdicts(by_name, against["kd"])


def contrasts_of(pairs: Sequence[Pair], by_name: Mapping[str, Entry]) -> dict[Pair, Contrast]:
    """One family: each pair over the students that both have."""
    differences = {}
    for a, b in pairs:
        common = [name for name in by_name[a].students if name in by_name[b].students]
        if common:
            differences[a, b] = by_name[a].right(common) - by_name[b].right(common)
    return contrasts(differences)


def _against(base: str, rows: Sequence[Entry]) -> dict[str, Contrast]:
    by_name = {row.name: row for row in rows}
    if base not in by_name:
        return {}
    others = [row.name for row in rows if row.name != base and row.same_as != base]
    return {a: contrast for (a, _), contrast in contrasts_of([(name, base) for name in others], by_name).items()}


def _per_student(base: str, rows: Sequence[Entry]) -> dict[tuple[str, str], Contrast]:
    """A family of its own: every contender's every student against the base's."""
    found = next((row for row in rows if row.name == base), None)
    if found is None:
        return {}
    return contrasts(
        {
            (row.name, name): row.right([name]) - found.right([name])
            for row in rows
            if row.name != base and row.same_as != base
            for name in row.students
            if name in found.students
        }
    )


def _verdicts(by_name: Mapping[str, Entry], over_kd: Mapping[str, Contrast]) -> dict[str, Any]:
    """One verdict for each variant of mc-distil; all their control pairs are one family."""
    totals = {name: row.total_weight for name, row in by_name.items()}
    asked = [question_for(subject, totals) for subject in subjects_of(totals) if subject in over_kd]
    questions = [question for question in asked if question is not None]
    answers = contrasts_of(list(dict.fromkeys(pair for one in questions for pair in one.pairs())), by_name)
    return {
        "controls": [{"a": a, "b": b, **_told(contrast)} for (a, b), contrast in answers.items()],
        "verdicts": [_verdict(one, over_kd[one.subject], answers, totals, by_name[one.subject]) for one in questions],
    }


def _verdict(
    question: Question, gain: Contrast, answers: Mapping[Pair, Contrast], totals: Mapping[str, float], row: Entry
) -> dict[str, Any]:
    lines = sentences(question, gain, answers, totals)
    updates = min(cell.updates for cell in row.cells)
    if updates < FEW_UPDATES:
        lines.append(f"C-NET made {updates} updates; under {FEW_UPDATES}, a verdict on what it learns means little.")
    return {
        "subject": question.subject,
        "parts": {part.name: list(part.pair) if part.pair else None for part in question.parts},
        "claims": {
            claim.name: {
                "claimed": claimed(claim, question.subject, answers),
                "against": list(claim.against),
                "missing": list(claim.missing),
            }
            for claim in question.claims
        },
        "lines": lines,
    }


def _row(row: Entry) -> dict[str, Any]:
    own = [sum(cell.last[name].mean() for name in row.students) / len(row.students) for cell in row.cells]
    seconds = [cell.seconds for cell in row.cells if cell.seconds is not None]
    accuracies = [[student.accuracy for student in cell.ladder.students] for cell in row.cells]
    gap = [one.test - one.val for cell in accuracies for one in cell]
    return {
        "name": row.name,
        "same_as": row.same_as,
        "cells": [f"cells/{cell.cell.name}" for cell in row.cells],
        "recipes": [cell.ladder.recipe_sha256 for cell in row.cells],
        "mean": spread(own),
        "total_weight": row.total_weight,
        "updates": min(cell.updates for cell in row.cells),
        "seconds": spread(seconds) if len(seconds) == len(row.cells) else None,
        "borrowed": sorted({name for cell in row.cells for name in cell.borrowed}),
        "test_minus_val": None if row.cells[0].cell.recipe.train_on_val else sum(gap) / len(gap),
    }


def _of_student(row: Entry, name: str) -> dict[str, Any]:
    return {
        "last": spread([float(cell.last[name].mean()) for cell in row.cells]),
        "best_on_val": spread([float(cell.chosen[name].mean()) for cell in row.cells]),
        "total_weight": sum(cell.total_weight[name] for cell in row.cells) / len(row.cells),
    }


def _is_cohort(row: Entry, base: Recipe) -> bool:
    """Whether the row is mc-distil on the base recipe, with these or other students (Figure 2)."""
    mc_distil = lay_over(base, {"method": SUBJECT, "seed": row.cells[0].cell.seed})
    return all(key.startswith("students.") for key in differing(row.cells[0].cell.recipe, mc_distil))


def _students(rows: Sequence[Entry]) -> list[dict[str, Any]]:
    """All students of all rows, by falling MACs."""
    found = {student.name: student for row in rows for student in row.cells[0].ladder.students}
    ordered = sorted(found.values(), key=lambda student: -student.macs)
    return [{"name": s.name, "arch": s.arch, "macs": s.macs, "params": s.params} for s in ordered]


def _warm_start(rows: Sequence[Entry]) -> dict[str, Any]:
    """Each student's test accuracy before any method, where there is a warm start."""
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for cell in row.cells:
            for student in cell.ladder.students:
                if student.accuracy.ce is not None:
                    values.setdefault(student.name, {})[cell.cell.seed] = student.accuracy.ce
    return {name: spread(list(by_seed.values())) for name, by_seed in values.items()}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation over seeds (None for one seed), and the values."""
    numbers = [float(value) for value in values]
    std = statistics.stdev(numbers) if len(numbers) > 1 else None
    return {"mean": statistics.fmean(numbers), "std": std, "values": numbers}


def _plain(contrast: Contrast | None) -> dict[str, Any] | None:
    return None if contrast is None else _told(contrast)


def _told(contrast: Contrast) -> dict[str, Any]:
    return {**asdict(contrast), "within_noise": contrast.within_noise}


def _distinct(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [item for i, item in enumerate(items) if item not in items[:i]]

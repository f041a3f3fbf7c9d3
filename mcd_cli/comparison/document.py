"""Summarises all cells of a comparison in one document."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

import mcd_cli
from mcd_cli.comparison.cells import Trained
from mcd_cli.comparison.paper import PaperFigures
from mcd_cli.comparison.plan import Plan, differing
from mcd_cli.comparison.schema import (
    ClaimResult,
    ContenderResult,
    Control,
    DatasetSummary,
    Document,
    Spread,
    StatisticsUsed,
    StudentCost,
    StudentResult,
    Tuning,
    Verdict,
)
from mcd_cli.comparison.statistics import LEVEL, RESAMPLES, Contrast, contrasts
from mcd_cli.comparison.verdict import SUBJECT, Pair, Question, claimed, question_for, sentences, subjects_of
from mcd_cli.ladder.schema import Calibration
from mcd_cli.recipe.loading import lay_over
from mcd_cli.recipe.schema import Recipe

ENDPOINT = "test accuracy at the last epoch, averaged over students"
FEW_UPDATES = 500


@dataclass(frozen=True, eq=False)
class Entry:
    """A row: a contender with its cells, one per seed; same_as: the row that it equals by definition."""

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
        """Share of these students that classify each test image correctly at the last epoch: [seeds, images]."""
        return np.stack([np.mean([cell.last[s] for s in students], axis=0, dtype=np.float32) for cell in self.cells])


def entries(plan: Plan, trained: Mapping[tuple[str, int], Trained]) -> tuple[list[Entry], dict[str, Tuning]]:
    """The rows in the requested order; a group is represented by its best member on val, under the group's name.

    val: accuracy at each student's best epoch on val, averaged over students and seeds. Also returns the choices.
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
    return rows, {group: Tuning(chosen=_best(on_val), val=on_val) for group, on_val in groups.items()}


def _best(on_val: Mapping[str, float]) -> str:
    return max(on_val, key=lambda name: on_val[name])


def describe(plan: Plan, trained: Mapping[tuple[str, int], Trained], paper: PaperFigures | None = None) -> Document:
    """The whole document."""
    rows, choices = entries(plan, trained)
    by_name = {row.name: row for row in rows}
    vs_kd, vs_ce = _against("kd", rows), _against("ce", rows)
    per_student = _per_student("kd", rows)
    questions, answers = _controls(by_name, vs_kd)
    ladder = rows[0].cells[0].ladder
    return Document(
        version=mcd_cli.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        endpoint=ENDPOINT,
        dataset=DatasetSummary(
            name=ladder.dataset.name,
            num_classes=len(ladder.dataset.classes),
            input_shape=ladder.dataset.input_shape,
            split_seed=ladder.dataset.split_seed,
            fingerprint=ladder.dataset.fingerprint,
            sizes=ladder.dataset.sizes,
            label_noise=plan.base.label_noise,
        ),
        teacher=ladder.teacher,
        seeds=plan.seeds,
        recipe=plan.base.model_dump(mode="json", exclude={"data_root", "checkpoint"}),
        hardware=_distinct([cell.ladder.hardware for row in rows for cell in row.cells]),
        students=_students(rows),
        warm_start=_warm_start(rows),
        statistics=StatisticsUsed(level=LEVEL, resamples=RESAMPLES, correction="Holm, within each family"),
        tuned=choices,
        contenders=tuple(
            _contender(row, plan.base, vs_kd.get(row.name), vs_ce.get(row.name), per_student) for row in rows
        ),
        controls=tuple(Control(a=a, b=b, **vars(contrast)) for (a, b), contrast in answers.items()),
        verdicts=tuple(_verdict(question, vs_kd[question.subject], answers, by_name) for question in questions),
        paper=paper,
    )


def contrasts_of(pairs: Sequence[Pair], by_name: Mapping[str, Entry]) -> dict[Pair, Contrast]:
    """One family of contrasts: each pair, over the students that both have."""
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
    """A separate family: each student of each contender against the base's."""
    baseline = next((row for row in rows if row.name == base), None)
    if baseline is None:
        return {}
    return contrasts(
        {
            (row.name, name): row.right([name]) - baseline.right([name])
            for row in rows
            if row.name != base and row.same_as != base
            for name in row.students
            if name in baseline.students
        }
    )


def _controls(
    by_name: Mapping[str, Entry], over_kd: Mapping[str, Contrast]
) -> tuple[list[Question], dict[Pair, Contrast]]:
    """A question for each variant of mc-distil; all their control pairs are one family."""
    totals = {name: row.total_weight for name, row in by_name.items()}
    candidates = [question_for(subject, totals) for subject in subjects_of(totals) if subject in over_kd]
    questions = [question for question in candidates if question is not None]
    pairs = dict.fromkeys(pair for question in questions for pair in question.pairs())
    return questions, contrasts_of(list(pairs), by_name)


def _verdict(
    question: Question, gain: Contrast, answers: Mapping[Pair, Contrast], by_name: Mapping[str, Entry]
) -> Verdict:
    lines = sentences(question, gain, answers, {name: row.total_weight for name, row in by_name.items()})
    updates = min(cell.updates for cell in by_name[question.subject].cells)
    if updates < FEW_UPDATES:
        lines.append(f"C-NET made {updates} updates; under {FEW_UPDATES}, a verdict on what it learns means little.")
    return Verdict(
        subject=question.subject,
        parts={part.name: part.pair for part in question.parts},
        claims={
            claim.name: ClaimResult(
                claimed=claimed(claim, question.subject, answers), against=claim.against, missing=claim.missing
            )
            for claim in question.claims
        },
        lines=tuple(lines),
    )


def _contender(
    row: Entry,
    base: Recipe,
    vs_kd: Contrast | None,
    vs_ce: Contrast | None,
    per_student: Mapping[tuple[str, str], Contrast],
) -> ContenderResult:
    own = [sum(cell.last[name].mean() for name in row.students) / len(row.students) for cell in row.cells]
    seconds = [cell.seconds for cell in row.cells if cell.seconds is not None]
    accuracies = [[student.accuracy for student in cell.ladder.students] for cell in row.cells]
    gap = [accuracy.test - accuracy.val for cell in accuracies for accuracy in cell]
    return ContenderResult(
        name=row.name,
        same_as=row.same_as,
        cells=tuple(f"cells/{cell.cell.name}" for cell in row.cells),
        recipes=tuple(cell.ladder.recipe_sha256 for cell in row.cells),
        mean=Spread.of(own),
        total_weight=row.total_weight,
        updates=min(cell.updates for cell in row.cells),
        seconds=Spread.of(seconds) if len(seconds) == len(row.cells) else None,
        borrowed=tuple(sorted({name for cell in row.cells for name in cell.borrowed})),
        test_minus_val=None if row.cells[0].cell.recipe.train_on_val else sum(gap) / len(gap),
        method=row.cells[0].cell.recipe.method,
        cohort=_is_cohort(row, base),
        vs_kd=vs_kd,
        vs_ce=vs_ce,
        students={name: _student(row, name, per_student.get((row.name, name))) for name in row.students},
    )


def _student(row: Entry, name: str, vs_kd: Contrast | None) -> StudentResult:
    return StudentResult(
        last=Spread.of(float(cell.last[name].mean()) for cell in row.cells),
        best_on_val=Spread.of(float(cell.chosen[name].mean()) for cell in row.cells),
        total_weight=sum(cell.total_weight[name] for cell in row.cells) / len(row.cells),
        vs_kd=vs_kd,
        probabilities=_probabilities([cell.ladder.student(name).calibration for cell in row.cells]),
    )


def _probabilities(calibrations: Sequence[Calibration | None]) -> dict[str, Spread]:
    found = [c for c in calibrations if c is not None and "test" in c.scaled and "test" in c.raw]
    if len(found) < len(calibrations):
        return {}
    scaled, raw = ([scores["test"] for scores in kind] for kind in ([c.scaled for c in found], [c.raw for c in found]))
    return {
        "nll": Spread.of(score.nll for score in scaled),
        "ece": Spread.of(score.ece for score in scaled),
        "raw_nll": Spread.of(score.nll for score in raw),
        "raw_ece": Spread.of(score.ece for score in raw),
    }


def _is_cohort(row: Entry, base: Recipe) -> bool:
    """Whether the row is mc-distil on the base recipe, with these or other students (Figure 2)."""
    mc_distil = lay_over(base, {"method": SUBJECT, "seed": row.cells[0].cell.seed})
    return all(key.startswith("students.") for key in differing(row.cells[0].cell.recipe, mc_distil))


def _students(rows: Sequence[Entry]) -> tuple[StudentCost, ...]:
    """All students of all rows, by falling MACs."""
    students = {student.name: student for row in rows for student in row.cells[0].ladder.students}
    ordered = sorted(students.values(), key=lambda student: -student.macs)
    return tuple(StudentCost(name=s.name, arch=s.arch, macs=s.macs, params=s.params) for s in ordered)


def _warm_start(rows: Sequence[Entry]) -> dict[str, Spread]:
    """Each student's test accuracy before any method; empty without a warm start."""
    values: dict[str, dict[int, float]] = {}
    for row in rows:
        for cell in row.cells:
            for student in cell.ladder.students:
                if student.accuracy.ce is not None:
                    values.setdefault(student.name, {})[cell.cell.seed] = student.accuracy.ce
    return {name: Spread.of(by_seed.values()) for name, by_seed in values.items()}


def _distinct(items: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    return tuple(item for i, item in enumerate(items) if item not in items[:i])

"""The paper's Figures 1b and 2, drawn from comparison.json."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from mcd_cli.comparison.schema import ContenderResult, Document
from mcd_cli.comparison.verdict import SUBJECT
from mcd_cli.files import write_whole
from mcd_cli.methods import papers_methods
from mcd_cli.reporting.style import GREY, STYLE, as_files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GAINS, COHORTS = "gains", "cohorts"


def draw(documents: Sequence[Document], folder: Path) -> list[str]:
    """Draw the figures for which there are results, as png and svg; returns the png names.

    documents: first the one of this comparison, then others. Raises RunFailed if a file cannot be written.
    """
    import matplotlib

    figures = {}
    with matplotlib.rc_context(STYLE):
        if any(gains_over_closest(document) for document in documents):
            figures[GAINS] = gains_figure(documents)
        if cohorts(documents[0]):
            figures[COHORTS] = cohorts_figure(documents[0])
        for name, figure in figures.items():
            for suffix, content in as_files(figure).items():
                write_whole(folder / f"{name}.{suffix}", content)
    return [f"{name}.png" for name in figures]


def gains_over_closest(document: Document) -> dict[str, tuple[float, float, str]]:
    """Student → mc-distil's gain over its best baseline in points, its standard deviation over seeds, the baseline."""
    rows = {row.name: row.students for row in document.contenders}
    subject = rows.get(SUBJECT)
    baselines = [name for name in papers_methods() if name in rows and name != SUBJECT]
    gains = {}
    for student, own in (subject or {}).items():
        others = {name: rows[name][student].last for name in baselines if student in rows[name]}
        if others:
            closest = max(others, key=lambda name: others[name].mean)
            paired = [a - b for a, b in zip(own.last.values, others[closest].values, strict=True)]
            spread = stdev(paired) if len(paired) > 1 else 0.0
            gains[student] = (100 * fmean(paired), 100 * spread, closest)
    return gains


def cohorts(document: Document) -> dict[str, list[tuple[int, ContenderResult]]]:
    """Direction → (number of students, row): contenders whose students grow by larger or by smaller students.

    Empty if no contender's students are a part of another's.
    """
    order = [student.name for student in document.students]  # by falling MACs
    rows = [row for row in document.contenders if row.cohort]
    chains = {}
    for direction, ranked in (("larger students added", order[::-1]), ("smaller students added", order)):
        chain = []
        for count in range(1, len(order) + 1):
            same = [row for row in rows if set(row.students) == set(ranked[:count])]
            if same:
                chain.append((count, next((row for row in same if row.name == SUBJECT), same[0])))
        if len(chain) > 1:
            chains[direction] = chain
    return chains


def gains_figure(documents: Sequence[Document]) -> Figure:
    """Figure 1b: absolute gain over the closest baseline for each teacher and student."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(document.dataset.name for document in documents))
    figure = Figure(figsize=(7, 0.6 + 3.0 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, squeeze=False)
    for panel, dataset in zip(panels[:, 0], names, strict=True):
        place, ticks, labels = 0.0, [], []
        for document in (shown for shown in documents if shown.dataset.name == dataset):
            bars = gains_over_closest(document)
            first = place
            for i, student in enumerate(s.name for s in document.students if s.name in bars):
                gain, spread, closest = bars[student]
                panel.bar(place, gain, yerr=spread or None, width=0.8, color=_shade(i), capsize=3, ecolor=GREY)
                ticks.append(place)
                labels.append(f"{student.removeprefix('resnet10-')}\n({closest})")
                place += 1
            teacher = document.teacher.arch if document.teacher else "no teacher"
            panel.annotate(
                f"teacher {teacher}, n = {len(document.seeds)}",
                ((first + place - 1) / 2, 0),
                xycoords=("data", "axes fraction"),
                xytext=(0, -28),
                textcoords="offset points",
                ha="center",
                va="top",
                fontsize=8,
            )
            place += 0.8
        panel.axhline(0, color="black", linewidth=0.8)
        panel.set_xticks(ticks, labels, fontsize=8)
        panel.use_sticky_edges = False
        panel.margins(y=0.1)
        panel.set_ylabel("points over the\nclosest baseline")
        panel.set_title(f"{dataset}: {SUBJECT}, last epoch, ± std over seeds (closest baseline)", fontsize=9)
        panel.grid(axis="y", alpha=0.25)
    return figure


def cohorts_figure(document: Document) -> Figure:
    """Figure 2: each student's accuracy against the number of students that train together."""
    from matplotlib.figure import Figure

    chains = cohorts(document)
    figure = Figure(figsize=(4.2 * len(chains), 3.8), layout="constrained")
    panels = figure.subplots(1, len(chains), squeeze=False, sharey=True)
    order = [student.name for student in document.students]
    for panel, (direction, chain) in zip(panels[0], chains.items(), strict=True):
        for i, student in enumerate(order):
            points = [(count, row.students[student].last) for count, row in chain if student in row.students]
            panel.errorbar(
                [count + 0.06 * (i - (len(order) - 1) / 2) for count, _ in points],  # side by side, not on top
                [100 * value.mean for _, value in points],
                yerr=[100 * (value.std or 0) for _, value in points],
                marker="o",
                markersize=4,
                capsize=3,
                color=_shade(i),
                label=student,
            )
        panel.set_xticks(range(1, len(order) + 1))
        panel.set_xlabel("number of students")
        panel.set_title(direction, fontsize=10)
        panel.grid(alpha=0.25)
    panels[0][0].set_ylabel("test accuracy (%)")
    panels[0][-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _shade(i: int) -> str:
    return ("#0b3c5d", "#1b6ca8", "#3fa7d6", "#8fcbe8", "#f79d65", "#c0504d")[i % 6]

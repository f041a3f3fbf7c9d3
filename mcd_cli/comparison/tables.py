"""A comparison as tables: figures in %, gains in percentage points; drawn for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from mcd_cli.comparison.schema import Document, Spread
from mcd_cli.comparison.statistics import Contrast
from mcd_cli.methods import METHODS
from mcd_cli.quantities import show_percent, show_time
from mcd_cli.reporting.table import Grid


def sheets(document: Document) -> list[Grid]:
    """The tables of a comparison, the most important first."""
    tables = [_last(document), _gains(document)]
    if any(row.vs_kd for row in document.contenders):
        tables.append(_gains_by_student(document))
    if document.controls:
        tables.append(_controls(document))
    return tables


def markdown(document: Document, pictures: Sequence[str]) -> str:
    """comparison.md."""
    parts = [f"# {document.dataset.name}: {', '.join(row.name for row in document.contenders)}", ""]
    parts += [f"{line}  " for line in caption(document)]
    for sheet in [*sheets(document), _best_on_val(document)]:
        parts += ["", sheet.markdown()]
    parts += ["", "## Verdict", ""] + [f"- {line}" for line in verdict(document)]
    notes = remarks(document)
    if notes:
        parts += ["", "## Remarks", ""] + [f"- {line}" for line in notes]
    parts += [text for name in pictures for text in ("", f"![{name}]({name})")]
    return "\n".join(parts) + "\n"


def caption(document: Document) -> list[str]:
    """What the figures were measured on."""
    dataset, teacher, recipe = document.dataset, document.teacher, document.recipe
    sizes = dataset.sizes
    noise = f", {dataset.label_noise:.0%} of its labels replaced" if dataset.label_noise else ""
    taught_by = f"teacher {teacher.arch} {show_percent(teacher.accuracy.test)} on test" if teacher else "no teacher"
    seeds = ", ".join(map(str, document.seeds))
    machines = "; ".join(
        f"{machine.get('name', machine.get('type', '?'))}, {machine.get('precision')}, torch {machine.get('torch')}"
        for machine in document.hardware
    )
    return [
        f"{dataset.name}: {sizes['train']:,} training images{noise}, {sizes['val']:,} in val, "
        f"{sizes['test']:,} test images; {taught_by}; seeds {seeds} (n = {len(document.seeds)})",
        f"warm start {recipe['warm_start']['epochs']} epochs, then {recipe['epochs']} epochs of each method, "
        f"batch {recipe['batch_size']}; ± is the standard deviation over seeds; {machines}",
        "gains: paired over seeds and test images, 95 % intervals by bootstrap; noise: p > 0.05 after Holm",
    ]


def verdict(document: Document) -> list[str]:
    lines = [line for verdict in document.verdicts for line in verdict.lines]
    return lines or ["none: it needs kd and mc-distil in the comparison."]


def remarks(document: Document) -> list[str]:
    """What a reader must know to interpret the tables."""
    lines = []
    for row in document.contenders:
        if row.same_as:
            lines.append(f"{row.name} is {row.same_as} by definition here: run once.")
        if row.borrowed:
            lines.append(
                f"{row.name} reuses {', '.join(row.borrowed)} from {METHODS[row.method].first_link}, "
                "which is the same by definition; its time is that of its other students."
            )
    if len(document.seeds) == 1:
        lines.append("one seed: the intervals cover only the choice of test images, and hold only for this seed.")
    if len(document.hardware) > 1:
        lines.append("the cells did not all run on the same machine, or not with the same precision and threads.")
    for name, choice in document.tuned.items():
        tried = ", ".join(f"{candidate} {show_percent(value)}" for candidate, value in choice.val.items())
        lines.append(f"{name}: {choice.chosen}, chosen on val among {tried}.")
    if document.paper:
        lines.append(
            f"paper: its Table {document.paper.table} (500 epochs, batch 400, its own splits and teacher at "
            f"{document.paper.teacher_accuracy} %); mc-distil-nops from Table 4, whose mc-distil differs from "
            "Table 1's."
        )
    return lines


def _last(document: Document) -> Grid:
    """Like Table 1, with the mean over students and the paper's figures."""
    names = _students(document)
    own = {
        row.name: [*(row.students[name].last if name in row.students else None for name in names), row.mean]
        for row in document.contenders
    }
    paper = {} if document.paper is None else document.paper.students
    return _accuracy(document, "Test accuracy (%) at the last epoch", (*names, "mean"), own, paper)


def _best_on_val(document: Document) -> Grid:
    names = _students(document)
    own = {
        row.name: [row.students[name].best_on_val if name in row.students else None for name in names]
        for row in document.contenders
    }
    return _accuracy(document, "Test accuracy (%) at each student's best epoch on val", names, own, {})


def _accuracy(
    document: Document,
    title: str,
    columns: tuple[str, ...],
    own: Mapping[str, Sequence[Spread | None]],
    paper: Mapping[str, Mapping[str, float]],
) -> Grid:
    """A row for each method, the paper's below: mean ± std over seeds, the best of each column marked.

    own: contender → its accuracies by column; paper: student → method → %.
    """
    students = _students(document)
    rows: list[tuple[str, ...]] = []
    values: dict[tuple[int, int], float] = {}
    if document.warm_start:
        starts = [_spread(document.warm_start.get(name)) for name in students]
        rows.append(("CE (warm start)", *starts, *[""] * (len(columns) - len(students))))
    for contender, accuracies in own.items():
        values |= {(len(rows), j): value.mean for j, value in enumerate(accuracies, start=1) if value is not None}
        rows.append((contender, *map(_spread, accuracies)))
        printed = [paper.get(name, {}).get(contender) for name in students]
        known = [value for value in printed if value is not None]
        if known:
            average = f"{fmean(known):.2f}" if len(known) == len(printed) else "-"
            rows.append(("  paper", *("-" if value is None else f"{value:.2f}" for value in printed), average))
    return Grid(("method", *columns), tuple(rows), title, _best(values))


def _students(document: Document) -> tuple[str, ...]:
    return tuple(student.name for student in document.students)


def _gains(document: Document) -> Grid:
    """Each method's gain and cost."""
    rows = []
    for row in document.contenders:
        updates = str(row.updates) if row.updates else "-"
        time = "-" if row.seconds is None else show_time(row.seconds.mean) + ("*" if row.borrowed else "")
        rows.append(
            (
                row.name,
                _gain(row.vs_kd),
                _interval(row.vs_kd),
                _p(row.vs_kd),
                _gain(row.vs_ce),
                f"{row.total_weight:.2f}",
                updates,
                time,
                "-" if row.test_minus_val is None else f"{100 * row.test_minus_val:+.1f}",
            )
        )
    columns = ("method", "over kd", "95 %", "p", "over ce", "weight", "updates", "time", "test − val")
    title = "Gain of the mean, in points; total loss weight; C-NET updates; training time"
    return Grid(columns, tuple(rows), title)


def _gains_by_student(document: Document) -> Grid:
    students = _students(document)
    rows = [
        (row.name, *(_gain(row.students[name].vs_kd if name in row.students else None) for name in students))
        for row in document.contenders
        if row.vs_kd
    ]
    return Grid(("method", *students), tuple(rows), "Gain over kd of each student, in points")


def _controls(document: Document) -> Grid:
    rows = [
        (f"{control.a} − {control.b}", _gain(control), _interval(control), _p(control)) for control in document.controls
    ]
    return Grid(("pair", "difference", "95 %", "p"), tuple(rows), "Controls, in points of the mean")


def _best(values: Mapping[tuple[int, int], float]) -> frozenset[tuple[int, int]]:
    columns = {j for _, j in values}
    top = {j: max(value for (_, column), value in values.items() if column == j) for j in columns}
    return frozenset(place for place, value in values.items() if value == top[place[1]])


def _spread(value: Spread | None) -> str:
    if value is None:
        return "-"
    std = "" if value.std is None else f" ± {100 * value.std:.2f}"
    return f"{100 * value.mean:.2f}{std}"


def _gain(contrast: Contrast | None) -> str:
    return _shown(contrast, lambda c: f"{100 * c.difference:+.2f}" + (" (noise)" if c.within_noise else ""))


def _interval(contrast: Contrast | None) -> str:
    return _shown(contrast, lambda c: f"{100 * c.low:+.2f} to {100 * c.high:+.2f}")


def _p(contrast: Contrast | None) -> str:
    return _shown(contrast, lambda c: "< 0.001" if c.p_holm < 0.001 else f"{c.p_holm:.3f}")


def _shown(contrast: Contrast | None, show: Callable[[Contrast], str]) -> str:
    return "-" if contrast is None else show(contrast)

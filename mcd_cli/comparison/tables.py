"""A comparison as tables: figures in %, gains in percentage points; drawn for a terminal or as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcd_cli.methods import METHODS
from mcd_cli.quantities import show_time
from mcd_cli.reporting.table import Sheet

Row = Mapping[str, Any]


def sheets(document: Mapping[str, Any]) -> list[Sheet]:
    """The tables of a comparison, the most important first."""
    tables = [_accuracy(document, "last", "Test accuracy (%) at the last epoch"), _gains(document)]
    if any(row["vs_kd"] for row in document["contenders"]):
        tables.append(_gains_by_student(document))
    if document["controls"]:
        tables.append(_controls(document))
    return tables


def markdown(document: Mapping[str, Any], pictures: Sequence[str]) -> str:
    """comparison.md."""
    chosen = _accuracy(document, "best_on_val", "Test accuracy (%) at each student's best epoch on V")
    parts = [f"# {document['dataset']['name']}: {', '.join(row['name'] for row in document['contenders'])}", ""]
    parts += [f"{line}  " for line in caption(document)]
    for sheet in [*sheets(document), chosen]:
        parts += ["", sheet.markdown()]
    parts += ["", "## Verdict", ""] + [f"- {line}" for line in verdict(document)]
    notes = remarks(document)
    if notes:
        parts += ["", "## Remarks", ""] + [f"- {line}" for line in notes]
    parts += [text for name in pictures for text in ("", f"![{name}]({name})")]
    return "\n".join(parts) + "\n"


def caption(document: Mapping[str, Any]) -> list[str]:
    """What the figures were measured on."""
    dataset, teacher, recipe = document["dataset"], document["teacher"], document["recipe"]
    sizes = dataset["sizes"]
    noise = f", {dataset['label_noise']:.0%} of its labels replaced" if dataset["label_noise"] else ""
    taught_by = (
        f"teacher {teacher['arch']} {_percent(teacher['accuracy']['test'])} on test" if teacher else "no teacher"
    )
    seeds = ", ".join(map(str, document["seeds"]))
    machines = "; ".join(
        f"{machine.get('name', machine.get('type', '?'))}, {machine.get('precision')}, torch {machine.get('torch')}"
        for machine in document["hardware"]
    )
    return [
        f"{dataset['name']}: {sizes['train']:,} training images{noise}, {sizes['val']:,} in V, "
        f"{sizes['test']:,} test images; {taught_by}; seeds {seeds} (n = {len(document['seeds'])})",
        f"warm start {recipe['warm_start']['epochs']} epochs, then {recipe['epochs']} epochs of each method, "
        f"batch {recipe['batch_size']}; ± is the standard deviation over seeds; {machines}",
        "gains: paired over seeds and test images, 95 % intervals by bootstrap; noise: p > 0.05 after Holm",
    ]


def verdict(document: Mapping[str, Any]) -> list[str]:
    lines = [line for subject in document["verdicts"] for line in subject["lines"]]
    return lines or ["none: it needs kd and mc-distil in the comparison."]


def remarks(document: Mapping[str, Any]) -> list[str]:
    """What a reader must know to read the table right."""
    lines = []
    for row in document["contenders"]:
        if row["same_as"]:
            lines.append(f"{row['name']} is {row['same_as']} by definition here: run once.")
        if row["borrowed"]:
            lines.append(
                f"{row['name']} took {', '.join(row['borrowed'])} over from {METHODS[row['method']].first_link}, "
                "which is the same by definition; its time is that of the other links."
            )
    if len(document["seeds"]) == 1:
        lines.append("one seed: the intervals know the test images alone, and hold for this seed.")
    if len(document["hardware"]) > 1:
        lines.append("the cells did not all run on the same machine, or not with the same precision and threads.")
    for name, choice in document["tuned"].items():
        tried = ", ".join(f"{candidate} {_percent(value)}" for candidate, value in choice["val"].items())
        lines.append(f"{name}: {choice['chosen']}, chosen on V among {tried}.")
    if document.get("paper"):
        lines.append(
            f"paper: its Table {document['paper']['table']} (500 epochs, batch 400, its own splits and teacher at "
            f"{document['paper']['teacher_accuracy']} %); mc-distil-nops from Table 4, whose mc-distil differs from "
            "Table 1's."
        )
    return lines


def _accuracy(document: Mapping[str, Any], kind: str, title: str) -> Sheet:
    """Like Table 1, a row for each method: mean ± std over seeds, the best of each column marked."""
    students = [student["name"] for student in document["students"]]
    paper = (document.get("paper") or {}).get("students", {})
    rows: list[tuple[str, ...]] = []
    values: dict[tuple[int, int], float] = {}
    if document["warm_start"]:
        start = document["warm_start"]
        rows.append(("CE (warm start)", *(_spread(start.get(name)) for name in students), ""))
    for row in document["contenders"]:
        own = [row["students"].get(name, {}).get(kind) for name in students]
        mean = row["mean"] if kind == "last" else None
        for j, value in enumerate([*own, mean], start=1):
            if value is not None:
                values[len(rows), j] = value["mean"]
        rows.append((row["name"], *(_spread(value) for value in own), _spread(mean)))
        printed = [paper.get(name, {}).get(row["name"]) for name in students]
        if kind == "last" and any(value is not None for value in printed):
            all_there = None not in printed
            average = f"{sum(printed) / len(printed):.2f}" if all_there else "-"
            rows.append(("  paper", *("-" if value is None else f"{value:.2f}" for value in printed), average))
    columns = ("method", *students, "mean") if kind == "last" else ("method", *students)
    return Sheet(title, columns, tuple(row[: len(columns)] for row in rows), _best(values))


def _gains(document: Mapping[str, Any]) -> Sheet:
    """What each method gains, and at what price."""
    rows = []
    for row in document["contenders"]:
        updates = str(row["updates"]) if row["updates"] else "-"
        time = "-" if row["seconds"] is None else show_time(row["seconds"]["mean"]) + ("*" if row["borrowed"] else "")
        rows.append(
            (
                row["name"],
                _gain(row["vs_kd"]),
                _interval(row["vs_kd"]),
                _p(row["vs_kd"]),
                _gain(row["vs_ce"]),
                f"{row['total_weight']:.2f}",
                updates,
                time,
                "-" if row["test_minus_val"] is None else f"{100 * row['test_minus_val']:+.1f}",
            )
        )
    columns = ("method", "over kd", "95 %", "p", "over ce", "weight", "updates", "time", "test − V")
    return Sheet("Gain of the mean, in points; total loss weight; C-NET updates; training time", columns, tuple(rows))


def _gains_by_student(document: Mapping[str, Any]) -> Sheet:
    students = [student["name"] for student in document["students"]]
    rows = [
        (row["name"], *(_gain(row["students"].get(name, {}).get("vs_kd")) for name in students))
        for row in document["contenders"]
        if row["vs_kd"]
    ]
    return Sheet("Gain over kd of each student, in points", ("method", *students), tuple(rows))


def _controls(document: Mapping[str, Any]) -> Sheet:
    rows = [
        (f"{contrast['a']} − {contrast['b']}", _gain(contrast), _interval(contrast), _p(contrast))
        for contrast in document["controls"]
    ]
    return Sheet("Controls, in points of the mean", ("pair", "difference", "95 %", "p"), tuple(rows))


def _best(values: Mapping[tuple[int, int], float]) -> frozenset[tuple[int, int]]:
    columns = {j for _, j in values}
    top = {j: max(value for (_, column), value in values.items() if column == j) for j in columns}
    return frozenset(place for place, value in values.items() if value == top[place[1]])


def _spread(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return "-"
    std = "" if value["std"] is None else f" ± {100 * value['std']:.2f}"
    return f"{100 * value['mean']:.2f}{std}"


def _gain(contrast: Mapping[str, Any] | None) -> str:
    return _shown(contrast, lambda c: f"{100 * c['difference']:+.2f}" + (" (noise)" if c["within_noise"] else ""))


def _interval(contrast: Mapping[str, Any] | None) -> str:
    return _shown(contrast, lambda c: f"{100 * c['low']:+.2f} to {100 * c['high']:+.2f}")


def _p(contrast: Mapping[str, Any] | None) -> str:
    return _shown(contrast, lambda c: "< 0.001" if c["p_holm"] < 0.001 else f"{c['p_holm']:.3f}")


def _shown(contrast: Mapping[str, Any] | None, show: Callable[[Mapping[str, Any]], str]) -> str:
    return "-" if contrast is None else show(contrast)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"

"""The plots of a run: accuracy over MACs, and the course of training. Each is written as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.files import write_whole
from mcd_cli.ladder.folder import LADDER_PLOT, TRAINING_PLOT
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.metrics import TEACHER, WARM_START, EpochRecord, read_metrics
from mcd_cli.quantities import show_count, show_size
from mcd_cli.reporting.style import BLUE, GREY, RED, STYLE, as_files, loss_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LARGEST_AREA = 700.0  # of a student's disc, in square points


def draw(ladder: Ladder, folder: Path) -> list[Path]:
    """Write the pictures of `render` into the folder; returns their paths. Raises RunFailed if it cannot."""
    pictures = render(ladder)
    for name, content in pictures.items():
        write_whole(folder / name, content)
    return [folder / name for name in pictures]


def render(ladder: Ladder) -> dict[str, bytes]:
    """ladder.png and .svg and, if the run has metrics, training.png and .svg."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figures = {LADDER_PLOT: ladder_figure(ladder)}
        records = [] if ladder.folder is None else read_metrics(ladder.folder)
        records = [record for record in records if record.stage != TEACHER]
        if records:
            figures[TRAINING_PLOT] = training_figure(ladder, records)
        return {
            f"{name}.{suffix}": content
            for name, figure in figures.items()
            for suffix, content in as_files(figure).items()
        }


def ladder_figure(ladder: Ladder) -> Figure:
    """Test accuracy over MACs: from the CE start to the distilled end; a disc's area is the size of the weights."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    students = ladder.students
    macs = [student.macs for student in students]
    end = [100 * student.accuracy.test for student in students]
    largest = max(student.bytes for student in students)
    areas = [LARGEST_AREA * student.bytes / largest for student in students]
    axes.plot(macs, end, "-", color=BLUE, alpha=0.3, linewidth=1, zorder=1)
    axes.scatter(macs, end, s=areas, color=BLUE, alpha=0.25, linewidths=0, zorder=2)
    axes.scatter(macs, end, s=16, color=BLUE, zorder=4, label=f"{ladder.method}")
    for student, x, y in zip(students, macs, end, strict=True):
        if student.accuracy.ce is not None:
            start = 100 * student.accuracy.ce
            axes.scatter([x], [start], s=24, facecolors="white", edgecolors=GREY, zorder=3)
            arrow = {"arrowstyle": "-|>", "color": GREY, "shrinkA": 3, "shrinkB": 3, "linewidth": 1}
            axes.annotate("", (x, y), (x, start), arrowprops=arrow, zorder=3)
    if any(student.accuracy.ce is not None for student in students):
        axes.scatter([], [], s=24, facecolors="white", edgecolors=GREY, label="CE (warm start)")
    if ladder.teacher is not None:
        accuracy = 100 * ladder.teacher.accuracy.test
        label = f"teacher {ladder.teacher.arch}, {accuracy:.1f} %"
        axes.axhline(accuracy, color=RED, linestyle="--", linewidth=1, label=label, zorder=1)
    axes.set_xscale("log")
    is_narrow = max(macs) < 8 * min(macs)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7) if is_narrow else (1, 2, 5)))
    axes.xaxis.set_major_formatter(lambda value, position: show_count(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("MACs per image (multiply-adds, log axis)")
    axes.set_ylabel("test accuracy (%)")
    axes.margins(x=0.15, y=0.26)
    num_test = ladder.dataset.sizes.get("test")
    axes.set_title(_title(ladder, f"{num_test:,} test images" if num_test else "test images"), fontsize=10, loc="left")
    axes.grid(alpha=0.2)
    disc = f"area: bytes (largest {show_size(largest, 3)})"
    axes.scatter([], [], s=60, color=BLUE, alpha=0.25, linewidths=0, label=disc)
    figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=4, columnspacing=1.5, handletextpad=0.5)
    radii = [(area / math.pi) ** 0.5 for area in areas]
    starts = [None if s.accuracy.ce is None else 100 * s.accuracy.ce for s in students]
    _label(axes, [f"{s.name}\n{100 * s.accuracy.test:.1f}" for s in students], macs, end, radii, starts)
    return figure


def _label(
    axes: Axes,
    texts: Sequence[str],
    x: Sequence[float],
    y: Sequence[float],
    radii: Sequence[float],
    starts: Sequence[float | None],
) -> None:
    """Names beside their discs, away from arrows, discs, the edge, and names already there; with a halo on lines."""
    from matplotlib.patheffects import withStroke
    from matplotlib.transforms import Bbox

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    figure.set_layout_engine(None)  # placing names moves nothing else; a new layout would take longer than drawing
    scale = figure.dpi / 72
    taken = []
    for a, b, radius, start in zip(x, y, radii, starts, strict=True):
        centre = axes.transData.transform((a, b))
        reach = max(radius, 4) * scale
        taken.append(Bbox([centre - reach, centre + reach]))
        if start is not None:
            foot = axes.transData.transform((a, start))
            taken.append(Bbox([(foot[0] - 4, min(foot[1], centre[1]) - 4), (foot[0] + 4, max(foot[1], centre[1]) + 4)]))
    frame = axes.get_window_extent()
    halo = [withStroke(linewidth=3, foreground="white")]
    for text, a, b, radius in zip(texts, x, y, radii, strict=True):
        gap = radius + 3
        places: list[tuple[float, float, str, str]] = [(0, gap, "center", "bottom"), (0, -gap, "center", "top")]
        places += [(gap, 0, "left", "center"), (-gap, 0, "right", "center")]
        places += [(gap, gap, "left", "bottom"), (-gap, -gap, "right", "top"), (gap, -gap, "left", "top")]
        drawn = [
            axes.annotate(text, (a, b), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, path_effects=halo)
            for dx, dy, ha, va in places
        ]
        boxes = [note.get_window_extent() for note in drawn]
        inside = [frame.x0 <= b.x0 and b.x1 <= frame.x1 and frame.y0 <= b.y0 and b.y1 <= frame.y1 for b in boxes]
        overlaps = [
            sum(b.overlaps(other) for other in taken) + 2 * (not ok) for b, ok in zip(boxes, inside, strict=True)
        ]
        best = overlaps.index(min(overlaps))
        taken.append(boxes[best])
        for i, note in enumerate(drawn):
            if i != best:
                note.remove()


def training_figure(ladder: Ladder, records: Sequence[EpochRecord]) -> Figure:
    """Accuracy on val over the epochs and, if C-NET has learned them, each student's weights with their spread."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    learned = list(dict.fromkeys(s for r in records for e in r.students.values() for s in e.spread or ()))
    figure = Figure(figsize=(7, 3.2 + 1.5 * len(learned)), layout="constrained")
    grid = figure.add_gridspec(1 + len(learned), 1, height_ratios=[2.2, *[1] * len(learned)])
    axes = [figure.add_subplot(grid[0])]
    for i in range(len(learned)):
        axes.append(figure.add_subplot(grid[i + 1], sharex=axes[0], sharey=axes[1] if i else None))
    warm = max((r.epoch for r in records if r.stage == WARM_START), default=0)
    tones = colormaps["viridis"]
    for i, student in enumerate(ladder.students):
        colour = tones(0.8 * i / max(1, len(ladder.students) - 1))
        own = [(_epoch(r, warm), r.students[student.name]) for r in records if student.name in r.students]
        marker = "o" if len(own) < 12 else ""
        line: dict[str, Any] = {"color": colour, "marker": marker, "markersize": 3, "linewidth": 1.3}
        axes[0].plot([x for x, _ in own], [100 * e.val_accuracy for _, e in own], label=student.name, **line)
        for panel, symbol in zip(axes[1:], learned, strict=True):
            points = [(x, e.weights[symbol], e.spread[symbol]) for x, e in own if e.spread and symbol in e.spread]
            if points:
                x, mean, spread = zip(*points, strict=True)
                panel.plot(x, mean, **line)
                low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
                panel.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    if ladder.teacher is not None:
        axes[0].axhline(100 * ladder.teacher.accuracy.val, color=RED, linestyle="--", linewidth=1, label="teacher")
    for panel, symbol in zip(axes[1:], learned, strict=True):
        panel.set_ylabel(loss_label(symbol))
        panel.margins(y=0.12)
    for panel in axes:
        panel.grid(alpha=0.2)
        panel.label_outer()
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        if warm and any(r.is_of_method for r in records):
            panel.axvline(warm + 0.5, color=GREY, linewidth=0.8, linestyle=":")
    if warm:
        where = axes[0].get_xaxis_transform()
        axes[0].text(warm + 0.45, 1.0, "warm start ", ha="right", va="bottom", transform=where, color=GREY, fontsize=8)
        axes[0].text(
            warm + 0.55, 1.0, f" {ladder.method}", ha="left", va="bottom", transform=where, color=GREY, fontsize=8
        )
    axes[0].set_ylabel("accuracy on val (%)")
    axes[0].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[-1].set_xlabel("epoch" + ("; C-NET's weights: mean over images, band: one standard deviation" * bool(learned)))
    num_val = ladder.dataset.sizes.get("val")
    figure.suptitle(_title(ladder, f"val of {num_val:,} images" if num_val else "val"), fontsize=10, x=0.02, ha="left")
    return figure


def _epoch(record: EpochRecord, warm: int) -> int:
    """Epochs since the student's start."""
    return record.epoch + (warm if record.is_of_method else 0)


def _title(ladder: Ladder, images: str) -> str:
    return f"{ladder.dataset.name}: {ladder.method}, {images}, seed {ladder.seed}"

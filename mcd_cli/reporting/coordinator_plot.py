"""Plots what C-NET learned: each student's loss weights by epoch and by class, and the extreme images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mcd_cli.files import write_whole
from mcd_cli.ladder.folder import COORDINATOR_PLOT
from mcd_cli.ladder.metrics import EpochRecord, ImagesRecord, StudentRecord, leading
from mcd_cli.reporting.style import as_files, loss_label, loss_styles

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Pixels = npt.NDArray[np.uint8]

HEAD, ROW = 0.75, 2.6  # heights in inches
COLUMNS = (
    "weights by epoch (band: ± 1 sd over images)",
    "by class, sorted by {leading}",
    "highest (above) and lowest weight {leading}; ! mislabelled",
)


def draw_story(metrics: Iterable[EpochRecord], folder: Path, pixels: Callable[[int], Pixels] | None = None) -> bool:
    """Write coordinator.png and .svg into the folder; False if no C-NET has learned anything.

    metrics: a run's records; pixels: sample id → uint8 [3, H, W], to show the extreme images themselves
    if they are available, not only their ids. Raises RunFailed if a file cannot be written.
    """
    figure = story_figure(metrics, pixels)
    if figure is None:
        return False
    for suffix, content in as_files(figure).items():
        write_whole(folder / f"{COORDINATOR_PLOT}.{suffix}", content)
    return True


def story_figure(metrics: Iterable[EpochRecord], pixels: Callable[[int], Pixels] | None = None) -> Figure | None:
    """A row per student: epochs, classes, extreme images; None if no C-NET has learned anything.

    All positions are given: finding them automatically would draw everything once more.
    """
    from matplotlib.figure import Figure

    courses = courses_of(metrics)
    if not courses:
        return None
    height = HEAD + ROW * len(courses)
    figure = Figure(figsize=(13, height))
    axes = figure.subplots(len(courses), 3, squeeze=False, width_ratios=(4, 4, 5))
    figure.subplots_adjust(0.03, 0.45 / height, 0.99, 1 - HEAD / height, wspace=0.12, hspace=0.32)
    for (left, middle, right), (student, course) in zip(axes, courses.items(), strict=True):
        images = course[-1][1].images
        _course(left, course)
        left.set_title(student, loc="left", fontsize=10, fontweight="bold")
        if images is None:
            middle.axis("off")
            right.axis("off")
        else:
            _classes(middle, images)
            _extremes(right, images, pixels)
    axes[-1][0].set_xlabel("epoch", fontsize=8)
    top = 1 - 0.3 / height
    by = loss_label(leading(list(next(iter(courses.values()))[-1][1].weights)))
    for panel, title in zip(axes[0], COLUMNS, strict=True):
        box = panel.get_position()
        figure.text((box.x0 + box.x1) / 2, top, title.format(leading=by), ha="center", fontsize=9)
    lines, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(
        lines,
        labels,
        frameon=False,
        fontsize=8,
        ncols=max(5, len(labels)),
        loc="upper left",
        bbox_to_anchor=(0.02, top),
    )
    return figure


def courses_of(metrics: Iterable[EpochRecord]) -> dict[str, list[tuple[int, StudentRecord]]]:
    """Student → (epoch, its record) for the epochs in which a C-NET set its loss weights."""
    courses: dict[str, list[tuple[int, StudentRecord]]] = {}
    for line in metrics:
        for name, student in line.students.items():
            if student.spread is not None:
                courses.setdefault(name, []).append((line.epoch, student))
    return courses


def _course(axes: Axes, course: list[tuple[int, StudentRecord]]) -> None:
    """Means over images by epoch, a band of one standard deviation over images, the total, the saturated share."""
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch for epoch, _ in course]
    weights = course[-1][1].weights
    for symbol, style in zip(weights, loss_styles(weights), strict=True):
        mean = [student.weights[symbol] for _, student in course]
        spread = [(student.spread or {})[symbol] for _, student in course]
        axes.plot(epochs, mean, color=style.colour, label=style.label, marker="." if len(epochs) < 30 else "")
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=style.colour, alpha=0.2, linewidth=0)
        saturated = [(student.saturated or {})[symbol] for _, student in course]
        axes.plot(epochs, saturated, color=style.colour, linestyle=":", linewidth=1)
    axes.plot(epochs, [student.total_weight for _, student in course], "k--", linewidth=1, label="total weight")
    axes.plot([], [], "k:", linewidth=1, label="saturated share")
    axes.set_ylim(0, 1.1 * max(student.total_weight for _, student in course))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _classes(axes: Axes, images: ImagesRecord) -> None:
    """Mean weight of each class, sorted by β; with many classes, only the first and last three are named."""
    beta = images.by_class[leading(list(images.by_class))]
    order = sorted(beta, key=lambda name: beta[name])
    for style, of_class in zip(loss_styles(images.by_class), images.by_class.values(), strict=True):
        values = [of_class[name] for name in order]
        axes.plot(range(len(order)), values, ".", color=style.colour, markersize=4)
    shown = list(range(len(order)))
    if len(order) > 12:
        shown = [*range(3), *range(len(order) - 3, len(order))]
    axes.set_xticks(shown, [order[i] for i in shown], rotation=40, ha="right", fontsize=6)
    axes.locator_params(axis="y", nbins=4)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(alpha=0.25)


def _extremes(axes: Axes, images: ImagesRecord, pixels: Callable[[int], Pixels] | None) -> None:
    """The images with the highest (top row) and the lowest weight of the teacher, as one picture."""
    import numpy as np

    of_end = [images.highest, images.lowest]
    thumbnails = [[None if pixels is None else pixels(image.image) for image in row] for row in of_end]
    side = next((t.shape[-1] for row in thumbnails for t in row if t is not None), 32)
    step, fall = side + max(1, side // 6), 2 * side
    sheet = np.full((fall + side, step * max(1, *map(len, of_end)), 3), 255, np.uint8)
    for i, row in enumerate(of_end):
        for j, image in enumerate(row):
            top, left = i * fall, j * step
            mark = "!" if image.mislabelled else ""
            label = image.label if len(image.label) <= 9 else image.label[:8] + "…"
            text = f"{label}{mark}\n{image.beta:.3f}"
            axes.text(left + side / 2, top - side / 10, text, ha="center", va="bottom", fontsize=6)
            thumbnail = thumbnails[i][j]
            if thumbnail is None:
                axes.text(left + side / 2, top + side / 2, f"#{image.image}", ha="center", va="center", fontsize=6)
            else:
                sheet[top : top + side, left : left + side] = thumbnail.transpose(1, 2, 0)
    height, width, _ = sheet.shape
    if pixels is not None:
        axes.imshow(sheet, interpolation="nearest", extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, -0.6 * side), aspect="equal")
    axes.axis("off")

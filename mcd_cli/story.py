"""What C-NET learned, as a picture: per student the course of its weights, by class, and the extreme images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.files import write_whole
from mcd_cli.pictures import as_files

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure

    Pixels = npt.NDArray[np.uint8]

STORY = "coordinator"
GAP = 0.15  # between the extreme images, in widths of one
Record = Mapping[str, Any]
LETTERS = {"alpha": "α (label)", "beta": "β (teacher)", "gamma": "γ (pooled students)"}
COLOURS = {"alpha": "#777777", "beta": "#1b6ca8", "gamma": "#c0504d"}


def draw_story(metrics: Iterable[Record], folder: Path, pixels: Callable[[int], Pixels] | None = None) -> bool:
    """Write coordinator.png and .svg into the folder; False where no C-NET has learned anything.

    metrics: the lines of metrics.jsonl; pixels: sample id → uint8 [3, H, W], to show the extreme images themselves
    where they are at hand, and not their ids alone. Raises RunFailed where it cannot write.
    """
    figure = story_figure(metrics, pixels)
    if figure is None:
        return False
    for suffix, content in as_files(figure).items():
        write_whole(folder / f"{STORY}.{suffix}", content)
    return True


def story_figure(metrics: Iterable[Record], pixels: Callable[[int], Pixels] | None = None) -> Figure | None:
    """A row per student: course, classes, extreme images; None where no C-NET has learned anything."""
    from matplotlib.figure import Figure

    courses = courses_of(metrics)
    if not courses:
        return None
    figure = Figure(figsize=(13, 3.1 * len(courses)), layout="constrained")
    figure.suppressComposite = True  # an SVG holds each image in its own pixels
    rows = figure.subfigures(len(courses), 1, squeeze=False)[:, 0]
    for row, (student, course) in zip(rows, courses.items(), strict=True):
        images = course[-1][1].get("images")
        left, middle, right = row.subfigures(1, 3, width_ratios=(4, 4, 5))
        row.suptitle(student, x=0.01, ha="left", fontsize=10, fontweight="bold")
        _course(left.subplots(), course)
        if images is not None:
            _classes(middle.subplots(), images)
            _extremes(right, images, pixels)
    return figure


def courses_of(metrics: Iterable[Record]) -> dict[str, list[tuple[int, Record]]]:
    """Student → (epoch, what its line says) of the epochs in which a C-NET weighed its losses."""
    courses: dict[str, list[tuple[int, Record]]] = {}
    for line in metrics:
        for name, student in line["students"].items():
            if "spread" in student:
                courses.setdefault(name, []).append((line["epoch"], student))
    return courses


def _course(axes: Axes, course: list[tuple[int, Record]]) -> None:
    """Means over images by epoch, a band of one standard deviation over images, the total, the saturated share."""
    from matplotlib.ticker import MaxNLocator

    epochs = [epoch for epoch, _ in course]
    for symbol in course[-1][1]["weights"]:
        mean = [student["weights"][symbol] for _, student in course]
        spread = [student["spread"][symbol] for _, student in course]
        axes.plot(epochs, mean, color=COLOURS[symbol], label=LETTERS[symbol], marker="." if len(epochs) < 30 else "")
        low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
        axes.fill_between(epochs, low, high, color=COLOURS[symbol], alpha=0.2, linewidth=0)
        saturated = [student["saturated"][symbol] for _, student in course]
        axes.plot(epochs, saturated, color=COLOURS[symbol], linestyle=":", linewidth=1)
    axes.plot(epochs, [student["total_weight"] for _, student in course], "k--", linewidth=1, label="total weight")
    axes.plot([], [], "k:", linewidth=1, label="saturated share")
    axes.set_ylim(0, 1.5 * max(student["total_weight"] for _, student in course))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch", fontsize=8)
    axes.set_title("weights by epoch (band: ± 1 sd over images)", fontsize=8)
    axes.legend(frameon=False, fontsize=7, ncols=3, loc="upper left")
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.25)


def _classes(axes: Axes, images: Record) -> None:
    """Mean weight of each class, sorted by β; the ends are named."""
    beta = images["by_class"]["beta"]
    order = sorted(beta, key=lambda name: beta[name])
    for symbol, of_class in images["by_class"].items():
        values = [of_class[name] for name in order]
        axes.plot(range(len(order)), values, ".", color=COLOURS[symbol], markersize=4)
    shown = list(range(len(order)))
    if len(order) > 12:
        shown = [*range(3), *range(len(order) - 3, len(order))]
    axes.set_xticks(shown, [order[i] for i in shown], rotation=40, ha="right", fontsize=6)
    axes.set_title("by class, sorted by β", fontsize=8)
    axes.tick_params(axis="y", labelsize=7)
    axes.grid(alpha=0.25)


def _extremes(panel: SubFigure, images: Record, pixels: Callable[[int], Pixels] | None) -> None:
    """The images with the highest (top row) and the lowest weight of the teacher."""
    panel.suptitle("highest (above) and lowest teacher weight β; ! mislabelled", fontsize=8)
    for axes, end in zip(panel.subplots(2, 1), ("highest", "lowest"), strict=True):
        axes.axis("off")
        axes.set(xlim=(0, max(1, len(images["highest"])) * (1 + GAP) - GAP), ylim=(0, 1), aspect="equal")
        for i, image in enumerate(images[end]):
            left = i * (1 + GAP)
            mark = "!" if image.get("mislabelled") else ""
            label = image["label"] if len(image["label"]) <= 9 else image["label"][:8] + "…"
            text = f"{label}{mark}\n{image['beta']:.3f}"
            axes.text(left + 0.5, 1.1, text, ha="center", va="bottom", fontsize=6)
            if pixels is None:
                axes.text(left + 0.5, 0.5, f"#{image['image']}", ha="center", va="center", fontsize=6)
            else:
                place = (left, left + 1, 0, 1)
                axes.imshow(pixels(image["image"]).transpose(1, 2, 0), interpolation="nearest", extent=place)

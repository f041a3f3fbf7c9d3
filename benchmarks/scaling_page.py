"""Writes docs/scaling.md from scaling.py's results: every figure on the page is measured or computed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGES, PIXELS, CLASSES, EPOCHS, BATCH = 1_281_167, 224, 1000, 90, 400
STUDENTS, LOSSES = 5, 3


@dataclass(frozen=True)
class Reckoning:
    """An ordinary kd step for one image: multiply-adds, bytes moved, and bytes of the students' activations."""

    teacher: str
    macs: int
    moved: int
    held: int


def page(results: dict[str, Any], image: Reckoning, card: dict[str, Any] | None) -> str:
    """The page as Markdown. card: floor.py's results from a GPU, or None."""
    parts = [*_measured(results), *_formula(results), *_imagenet(results, image, card), *_memory(image)]
    return "\n".join(parts) + "\n"


def _measured(results: dict[str, Any]) -> list[str]:
    about = results["hardware"]
    lines = [
        "# What a ladder costs as it grows",
        "",
        "Read this before you plan a run that is larger than the ones measured here.",
        "",
        f"Measured by `python benchmarks/scaling.py` on {about['cores']} cores of {about['name']}, "
        f"torch {about['torch']}, float32, {results['threads']} threads unless stated otherwise; medians "
        f"(smallest to largest) of {results['points'][0]['step_ms']['n']} training steps. "
        "`python benchmarks/scaling.py --doc` generates this page.",
        "",
        "| varied | students | batch | image | teacher | method | processes x threads | step, ms | images/s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in results["points"]:
        method = row["method"] if row["method"] == "kd" else f"{row['method']}, C-NET {row['coordinator']}"
        for kind in ("step", "meta_step"):
            if f"{kind}_ms" not in row:
                continue
            time = row[f"{kind}_ms"]
            cells = [
                row["sweep"],
                str(row["students"]),
                str(row["batch_size"]),
                f"{row['size']} px",
                row["teacher"],
                method + (", meta step" if kind == "meta_step" else ""),
                f"{row['processes']} x {row['threads']}",
                f"{time['median']:.0f} ({time['min']:.0f} to {time['max']:.0f})",
                f"{row['batch_size'] / time['median'] * 1e3:.0f}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def _formula(results: dict[str, Any]) -> list[str]:
    formula = results["formula"]
    rate, bandwidth = _inverse(formula["seconds_per_gmac"]), _inverse(formula["seconds_per_gb"])
    return [
        "## The formula",
        "",
        "    seconds of a step = MACs / rate + bytes / bandwidth + constant",
        "    MACs  = n (3 Σ students + teacher [+ C-NET])          forward once, backward twice",
        "    bytes = 4 Σ students' activations + 2 teacher's [+ 2 C-NET's] + 8 weights",
        "",
        f"Fitted to the {formula['n']} points above with one process: rate {rate} GMAC/s, bandwidth {bandwidth} GB/s, "
        f"constant {1e3 * formula['constant_seconds']:.0f} ms; the median error is {formula['median_error']:.0%}, the "
        f"largest {formula['largest_error']:.0%}. A meta step adds the students' forward and backward pass on val "
        "(3 times their MACs), one forward-mode pass (3 times) and C-NET's forward and backward (3 times its own).",
        "",
    ]


def _imagenet(results: dict[str, Any], image: Reckoning, card: dict[str, Any] | None) -> list[str]:
    formula, steps = results["formula"], EPOCHS * (IMAGES // BATCH)
    gmacs, gigabytes = image.macs / 1e9, image.moved / 1e9
    step = BATCH * (gmacs * formula["seconds_per_gmac"] + gigabytes * formula["seconds_per_gb"])
    step += formula["constant_seconds"]
    lines = [
        f"## ImageNet-1k: {IMAGES:,} images, {PIXELS} px, {EPOCHS} epochs",
        "",
        "Estimated from the formula, not measured. Five ResNet10 students (m to xxxs, whose stem keeps the full "
        f"resolution) and {image.teacher} cost {gmacs:.2f} GMAC per image and move {gigabytes:.2f} GB of activations:",
        "",
        f"- this processor: {step:.0f} s per step with batch {BATCH}, {steps * step / 86400:.0f} days in total;",
    ]
    if card is not None:
        floor = card["floor"]
        seconds = {
            "multiply-adds": gmacs / floor["gmacs_per_second"]["median"],
            "memory": gigabytes / floor["gb_per_second"]["median"],
        }
        larger = max(seconds, key=lambda name: seconds[name])
        ratio = card["ratios"]["step_over_floor"]["median"]
        total = EPOCHS * IMAGES * seconds[larger]
        lines.append(
            f"- {card['hardware']['name']}, {card['hardware']['precision']}, from its measured matrix rate and "
            f"bandwidth: at least {total / 3600:.1f} h ({larger} is the larger floor), or "
            f"{total * ratio / 3600:.1f} h if a step takes {ratio:.1f} times its floor, as at 32 px;"
        )
    return [
        *lines,
        "- images per second = batch / seconds of a step. Decoding must provide as many JPEG images per second, unless "
        "their views are cached.",
        "",
    ]


def _memory(image: Reckoning) -> list[str]:
    pixels = IMAGES * 3 * PIXELS**2
    view = IMAGES * CLASSES * 2
    weights = IMAGES * STUDENTS * LOSSES * 4
    draws = IMAGES * 12 * 4
    logits = BATCH * STUDENTS * CLASSES * 4
    rows = [
        ("decoded images, uint8", f"3 · {PIXELS}² per image", pixels, "streamed from a file on disk"),
        ("cached teacher logits, 2 bytes each", f"{CLASSES} · 2 per image and view", view, "per view, on disk"),
        ("loss weights, float32", f"{STUDENTS} · {LOSSES} · 4 per image", weights, "on the device"),
        ("an epoch's table of uniforms", "12 · 4 per image", draws, "in memory"),
        ("logits [n, k, C], float32", f"{STUDENTS} · {CLASSES} · 4 per image in the batch", logits, "on the device"),
        (
            "students' activations",
            f"{image.held / 1e6:.0f} MB per image in the batch",
            BATCH * image.held,
            "on the device",
        ),
    ]
    return [
        "## Memory for ImageNet-1k",
        "",
        f"Calculated for {STUDENTS} students, {LOSSES} losses and batch {BATCH}.",
        "",
        "| data | size in bytes | total | where |",
        "|---|---|---|---|",
        *(f"| {data} | {size} | {_size(total)} | {where} |" for data, size, total, where in rows),
        "",
        "The limits, in the order in which you will reach them:",
        "",
        f"1. Activations: {_size(BATCH * image.held)} at batch {BATCH}. Use a smaller batch or more processes "
        "(gradients, loss weights and the meta-gradient are still those of the whole batch; with `--sync-bn`, "
        "BatchNorm's statistics are too).",
        f"2. Decoded images: {_size(pixels)}, more than most machines' memory. Read from a file in random order, they "
        "make the disk the bottleneck.",
        f"3. Cached views: {_size(view)} per view.",
        f"4. Tables per image ({_size(weights)} and {_size(draws)}) and logits: small in comparison.",
    ]


def _inverse(value: float) -> str:
    return f"{1 / value:.1f}" if value else "unlimited"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"

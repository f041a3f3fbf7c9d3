"""docs/scaling.md, written from what scaling.py measured: every figure in it is a run's or is worked out here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

IMAGES, PIXELS, CLASSES, EPOCHS, BATCH = 1_281_167, 224, 1000, 90, 400
STUDENTS, LOSSES = 5, 3


@dataclass(frozen=True)
class Reckoning:
    """One image's ordinary kd step: multiply-adds, bytes moved, bytes of the students' activations held."""

    teacher: str
    macs: int
    moved: int
    held: int


def page(results: dict[str, Any], one: Reckoning, card: dict[str, Any] | None) -> str:
    return "\n".join([*_measured(results), *_formula(results), *_imagenet(results, one, card), *_memory(one)]) + "\n"


def _measured(results: dict[str, Any]) -> list[str]:
    about = results["hardware"]
    lines = [
        "# What a ladder costs as it grows",
        "",
        "For whoever plans a run that is larger than the ones measured here.",
        "",
        f"Measured by `python benchmarks/scaling.py` on {about['cores']} cores of {about['name']}, "
        f"torch {about['torch']}, float32, {results['threads']} threads unless said otherwise; medians "
        f"(smallest to largest) of {results['points'][0]['step_ms']['n']} steps of the engine itself. This "
        "page is printed by `python benchmarks/scaling.py --doc`.",
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
        f"Fitted to the {formula['n']} points of one process above: rate {rate} GMAC/s, bandwidth {bandwidth} GB/s, "
        f"constant {1e3 * formula['constant_seconds']:.0f} ms; off by {formula['median_error']:.0%} in the median, by "
        f"{formula['largest_error']:.0%} at the worst point. A meta step adds the students once forward and backward "
        "on val (3), one forward-mode pass (3) and C-NET forward and backward (3 of its own).",
        "",
    ]


def _imagenet(results: dict[str, Any], one: Reckoning, card: dict[str, Any] | None) -> list[str]:
    formula, steps = results["formula"], EPOCHS * (IMAGES // BATCH)
    gmacs, gigabytes = one.macs / 1e9, one.moved / 1e9
    step = BATCH * (gmacs * formula["seconds_per_gmac"] + gigabytes * formula["seconds_per_gb"])
    step += formula["constant_seconds"]
    lines = [
        f"## ImageNet-1k: {IMAGES:,} images, {PIXELS} px, {EPOCHS} epochs",
        "",
        "Arithmetic from the formula, not a measurement. Five ResNet10 students (m to xxxs, whose stem keeps every "
        f"pixel) and {one.teacher} cost {gmacs:.2f} GMAC and {gigabytes:.2f} GB of activations moved for each image:",
        "",
        f"- this processor: {step:.0f} s a step of {BATCH}, {steps * step / 86400:.0f} days;",
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
            f"bandwidth: at the least {total / 3600:.1f} h ({larger} is the larger floor), "
            f"{total * ratio / 3600:.1f} h where a step takes {ratio:.1f} times its floor, as at 32 px;"
        )
    return [
        *lines,
        "- images per second = batch / seconds of a step; so many JPEG pictures must be decoded in a second, for every "
        "view that is not stored.",
        "",
    ]


def _memory(one: Reckoning) -> list[str]:
    pixels = IMAGES * 3 * PIXELS**2
    view = IMAGES * CLASSES * 2
    weighed = IMAGES * STUDENTS * LOSSES * 4
    draws = IMAGES * 12 * 4
    logits = BATCH * STUDENTS * CLASSES * 4
    rows = [
        ("decoded images, uint8", f"3 · {PIXELS}² a picture", pixels, "streamed from a file on disk"),
        ("stored teacher views, 2 bytes a logit", f"{CLASSES} · 2 a picture and view", view, "per view, on disk"),
        ("C-NET's weights, float32", f"{STUDENTS} · {LOSSES} · 4 a picture", weighed, "on the device"),
        ("an epoch's table of uniforms", "12 · 4 a picture", draws, "in memory"),
        ("logits [n, k, C], float32", f"{STUDENTS} · {CLASSES} · 4 an image of the batch", logits, "on the device"),
        ("students' activations", f"{one.held / 1e6:.0f} MB an image", BATCH * one.held, "on the device"),
    ]
    return [
        "## Memory there",
        "",
        f"Arithmetic, for {STUDENTS} students, {LOSSES} losses and a batch of {BATCH}.",
        "",
        "| what | size | in all | where |",
        "|---|---|---|---|",
        *(f"| {what} | {size} | {_size(total)} | {where} |" for what, size, total, where in rows),
        "",
        "What breaks first, in this order:",
        "",
        f"1. activations: {_size(BATCH * one.held)} at batch {BATCH}; make the batch smaller or spread it over "
        "processes (gradients, C-NET's weights and the meta-gradient are those of the whole batch; BatchNorm's with "
        "`--sync-bn`);",
        f"2. the decoded images: {_size(pixels)} fit in few machines' memory; read from a file in random order, "
        "the disk is the bottleneck, not the processor;",
        f"3. stored views: {_size(view)} each, K views are K times that;",
        f"4. what is kept per image ({_size(weighed)} and {_size(draws)}) and the logits: small beside the rest.",
    ]


def _inverse(value: float) -> str:
    return f"{1 / value:.1f}" if value else "unlimited"


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"

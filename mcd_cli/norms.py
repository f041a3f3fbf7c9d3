"""Named input normalisations, for teachers that were trained elsewhere (--teacher-norm)."""

from __future__ import annotations

import re

from mcd_cli.errors import UserError, unknown

RGB = tuple[float, float, float]

LARGEST = 1e6  # limit for a mean, a std and 1/std, so that float32 keeps its precision; pixels lie in [0, 1]

NORMS: dict[str, tuple[RGB, RGB]] = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


def parse_norm(text: str) -> tuple[RGB, RGB] | None:
    """Mean and std for RGB in [0, 1], from a name or `R,G,B/R,G,B`; None for `auto`. Raises UserError."""
    if text == "auto":
        return None
    if text in NORMS:
        return NORMS[text]
    if not re.search(r"[/,]", text):
        raise unknown("normalisation", text, ["auto", *NORMS, "R,G,B/R,G,B"])
    try:
        mean, std = (tuple(float(v) for v in half.split(",")) for half in text.split("/"))
    except ValueError:
        mean, std = (), ()
    fits = all(abs(v) <= LARGEST for v in mean + std) and all(v >= 1 / LARGEST for v in std)
    if len(mean) != 3 or len(std) != 3 or not fits:
        raise UserError(
            f"normalisation {text!r} is not a mean and std; "
            "write R,G,B/R,G,B, for example .485,.456,.406/.229,.224,.225"
        )
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])

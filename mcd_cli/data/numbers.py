"""The numbers 00 to 99, of two of scikit-learn's handwritten digits each: a task on which a larger network is better.

No digit is in two parts: each part pairs its own share of the 1,797. Nothing is downloaded.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mcd_cli.data.dataset import Decoded, Request, measured
from mcd_cli.data.digits import shipped
from mcd_cli.data.images import resized
from mcd_cli.data.splits import Part
from mcd_cli.seeds import seed_of

SIDE, DIGIT, TOP = 16, 8, 4  # pixels
SHARES = {Part.TRAIN: 0.6, Part.VAL: 0.15, Part.TEST: 0.25}  # of the digits
COUNTS = {Part.TRAIN: 2000, Part.VAL: 500, Part.TEST: 2000}  # numbers made of them, equally many of each class


def read(request: Request) -> Decoded:
    """4,500 images, RGB, 16×16 or image_size: two digits side by side on black."""
    levels, labels = shipped()
    order = np.argsort(_draws("order", len(labels)), kind="stable")
    images, numbers, parts, start = [], [], [], 0.0
    for part, share in SHARES.items():
        ours = order[round(start * len(order)) : round((start + share) * len(order))]
        number = np.arange(COUNTS[part]) % 100
        canvas = np.zeros((len(number), SIDE, SIDE))
        for column, digit in ((0, number // 10), (DIGIT, number % 10)):
            chosen = _chosen(ours, labels, digit, f"{part.name} {column}")
            canvas[:, TOP : TOP + DIGIT, column : column + DIGIT] = levels[chosen]
        images.append(canvas)
        numbers.append(number)
        parts.append(np.full(len(number), part, dtype=np.uint8))
        start += share
    grey = np.rint(np.concatenate(images) * (255 / 16)).astype(np.uint8)
    rgb = resized(np.repeat(grey[:, None], 3, axis=1), request.image_size or SIDE)
    classes = tuple(f"{number:02}" for number in range(100))
    return measured(classes, rgb, np.concatenate(numbers).astype(np.int64), np.concatenate(parts))


def _chosen(
    ours: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], digit: npt.NDArray[np.int64], purpose: str
) -> npt.NDArray[np.int64]:
    """For each wanted digit, the index of one of ours that shows it."""
    draws = _draws(purpose, len(digit))
    chosen = np.empty(len(digit), dtype=np.int64)
    for value in range(10):
        wanted, pool = digit == value, ours[labels[ours] == value]
        chosen[wanted] = pool[draws[wanted] % np.uint64(len(pool))]
    return chosen


def _draws(purpose: str, count: int) -> npt.NDArray[np.uint64]:
    return np.random.PCG64(seed_of("numbers", purpose)).random_raw(count)

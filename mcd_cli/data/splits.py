"""Train, val and test splits: disjoint, stratified, and determined only by (split seed, labels, official split).

Random orders come from sorting raw PCG64 words: numpy guarantees that stream across versions, but not the results of
its shuffles.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mcd_cli.errors import UserError
from mcd_cli.seeds import seed_of

Ids = npt.NDArray[np.int64]

HELD_OUT = (0.1, 0.1)  # fractions for val and test if there is no official split; the first also cuts val from train


class Part(IntEnum):
    """The part of the official split that a sample belongs to."""

    ANY = 0
    TRAIN = 1
    VAL = 2
    TEST = 3


class Split(NamedTuple):
    """Sorted sample ids, int64."""

    train: Ids
    val: Ids
    test: Ids


def split(
    labels: Ids,
    parts: npt.NDArray[np.uint8],
    classes: Sequence[str],
    split_seed: int,
    held_out: tuple[float, float] = HELD_OUT,
) -> Split:
    """Keep the official parts; take missing parts from train, class by class, with at least one image per class.

    Raises UserError for fewer than two classes, an empty part, or a class that is too small.
    """
    check(labels, parts, classes)
    rank = _draws(len(labels), "split", split_seed)
    val_fraction, test_fraction = held_out
    has_val, has_test = (parts == Part.VAL).any(), (parts == Part.TEST).any()
    result = np.where(parts == Part.ANY, Part.TRAIN, parts)
    for label in range(len(classes)):
        ids = np.flatnonzero((labels == label) & (result == Part.TRAIN))
        ids = ids[np.argsort(rank[ids], kind="stable")]
        num_test = 0 if has_test else _share(len(ids), test_fraction)
        num_val = 0 if has_val else _share(len(ids), val_fraction)
        result[ids[:num_test]] = Part.TEST
        result[ids[num_test : num_test + num_val]] = Part.VAL
    return Split(*(np.flatnonzero(result == part) for part in (Part.TRAIN, Part.VAL, Part.TEST)))


def check(labels: Ids, parts: npt.NDArray[np.uint8], classes: Sequence[str]) -> None:
    """Raises UserError if `split` would; it is cheap enough to call before images are decoded."""
    if len(classes) < 2:
        only = f"only the class {classes[0]!r}" if classes else "no class folder with images"
        raise UserError(f"a data set needs at least two classes; found {only}")
    trainable = (parts == Part.ANY) | (parts == Part.TRAIN)
    counts = np.bincount(labels[trainable], minlength=len(classes))
    cuts = [part for part in (Part.VAL, Part.TEST) if not (parts == part).any()]
    needed = 1 + len(cuts)
    small = [f"{name!r} has {count}" for name, count in zip(classes, counts, strict=True) if count < needed]
    if small:
        missing = " and ".join(["val" if part == Part.VAL else "test" for part in cuts])
        reason = f", because {missing} {'is' if len(cuts) == 1 else 'are'} split off from them" if cuts else ""
        more = f" (and {len(small) - 3} more classes)" if len(small) > 3 else ""
        images = "image" if needed == 1 else "images"
        raise UserError(f"each class needs at least {needed} training {images}{reason}; {', '.join(small[:3])}{more}")


def with_noise(labels: Ids, train: Ids, num_classes: int, fraction: float, split_seed: int) -> Ids:
    """The labels, with exactly round(fraction x train) training labels replaced by a random other class.

    A larger fraction changes the same samples in the same way, and additional ones.
    """
    noisy = labels.copy()
    order = np.argsort(_draws(len(labels), "label noise", split_seed)[train], kind="stable")
    mislabelled = train[order[: int(fraction * len(train) + 0.5)]]
    steps = _draws(len(labels), "label noise class", split_seed)[mislabelled] % np.uint64(num_classes - 1)
    noisy[mislabelled] = (labels[mislabelled] + 1 + steps.astype(np.int64)) % num_classes
    return noisy


def some_classes(num_classes: int, fraction: float, split_seed: int) -> Ids:
    """round(fraction x classes) random classes; a larger fraction includes the classes of a smaller one."""
    order = np.argsort(_draws(num_classes, "some classes", split_seed), kind="stable")
    return np.sort(order[: int(fraction * num_classes + 0.5)])


def _draws(count: int, purpose: str, split_seed: int) -> npt.NDArray[np.uint64]:
    return np.random.PCG64(seed_of(purpose, split_seed)).random_raw(count)


def _share(count: int, fraction: float) -> int:
    return max(1, int(count * fraction + 0.5))

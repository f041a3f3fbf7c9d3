"""Train, V and test: disjoint, stratified, and functions of (split seed, labels, official split) alone.

Draws are raw PCG64 words ordered by value: numpy promises that stream across versions, but not what
its shuffles make of it.
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

HELD_OUT = (0.1, 0.1)  # fractions of V and test where nothing is official; V is cut from train with the first


class Part(IntEnum):
    """Where the data set's makers put a sample."""

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
    """Official parts as they are; what is missing is cut class by class, rounded, at least one image each.

    Raises UserError for fewer than two classes, an empty part, or a class too small to be cut.
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
    """Raises UserError where `split` would: cheap enough to ask before any image is decoded."""
    if len(classes) < 2:
        only = f"only the class {classes[0]!r}" if classes else "no class folder with images"
        raise UserError(f"a data set needs two classes or more; found {only}")
    trainable = (parts == Part.ANY) | (parts == Part.TRAIN)
    counts = np.bincount(labels[trainable], minlength=len(classes))
    cuts = [part for part in (Part.VAL, Part.TEST) if not (parts == part).any()]
    needed = 1 + len(cuts)
    small = [f"{name!r} has {count}" for name, count in zip(classes, counts, strict=True) if count < needed]
    if small:
        what = " and ".join(["V" if part == Part.VAL else "test" for part in cuts])
        why = f"to cut {what} from it" if cuts else "to train on"
        more = f" (and {len(small) - 3} more classes)" if len(small) > 3 else ""
        images = "image" if needed == 1 else "images"
        raise UserError(f"a class needs {needed} training {images} {why}; {', '.join(small[:3])}{more}")


def with_noise(labels: Ids, train: Ids, num_classes: int, fraction: float, split_seed: int) -> Ids:
    """Labels with exactly round(fraction x train) training labels moved to a uniformly drawn other class.

    A larger fraction moves the same samples, to the same classes, and more.
    """
    noisy = labels.copy()
    order = np.argsort(_draws(len(labels), "label noise", split_seed)[train], kind="stable")
    moved = train[order[: int(fraction * len(train) + 0.5)]]
    steps = _draws(len(labels), "label noise class", split_seed)[moved] % np.uint64(num_classes - 1)
    noisy[moved] = (labels[moved] + 1 + steps.astype(np.int64)) % num_classes
    return noisy


def some_classes(num_classes: int, fraction: float, split_seed: int) -> Ids:
    """round(fraction x classes) classes, drawn by split_seed; a larger fraction holds those of a smaller one."""
    order = np.argsort(_draws(num_classes, "some classes", split_seed), kind="stable")
    return np.sort(order[: int(fraction * num_classes + 0.5)])


def _draws(count: int, purpose: str, split_seed: int) -> npt.NDArray[np.uint64]:
    return np.random.PCG64(seed_of(purpose, split_seed)).random_raw(count)


def _share(count: int, fraction: float) -> int:
    return max(1, int(count * fraction + 0.5))

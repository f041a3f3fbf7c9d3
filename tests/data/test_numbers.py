"""Two-digit numbers: what is drawn is what the label says, no digit is in two parts, and any machine makes the same."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mcd_cli.data import load_dataset
from mcd_cli.data.dataset import Dataset


@pytest.fixture(scope="module")
def numbers() -> Dataset:
    return load_dataset("numbers")


def halves(numbers: Dataset, i: int) -> list[bytes]:
    """The two digits of image i, without the rows above and below, as bytes."""
    image = numbers.images[i, 0].numpy()
    found = []
    for half in (image[:, :8], image[:, 8:]):
        rows = np.flatnonzero(half.any(axis=1))
        found.append(half[rows[0] : rows[-1] + 1].tobytes())
    return found


def test_each_half_is_a_digit_of_the_label(numbers: Dataset) -> None:
    labels: dict[bytes, set[int]] = {}
    for digit, label in zip(load_digits().images, load_digits().target, strict=True):
        grey = np.rint(digit * 255 / 16).astype(np.uint8)
        rows = np.flatnonzero(grey.any(axis=1))
        labels.setdefault(grey[rows[0] : rows[-1] + 1].tobytes(), set()).add(int(label))
    for i in range(0, len(numbers.images), 7):
        tens, ones = halves(numbers, i)
        number = int(numbers.classes[int(numbers.labels[i])])
        assert number // 10 in labels[tens]
        assert number % 10 in labels[ones]


def test_no_digit_is_in_two_parts(numbers: Dataset) -> None:
    parts = [
        {half for i in ids.tolist() for half in halves(numbers, i)}
        for ids in (numbers.train, numbers.val, numbers.test)
    ]
    assert [len(part) > 200 for part in parts] == [True] * 3
    assert not parts[0] & parts[1] | parts[0] & parts[2] | parts[1] & parts[2]


def test_parts_and_classes_are_balanced(numbers: Dataset) -> None:
    for ids, count in ((numbers.train, 2000), (numbers.val, 500), (numbers.test, 2000)):
        assert set(Counter(numbers.labels[ids].tolist()).values()) == {count // 100}
    assert numbers.input_shape == (3, 16, 16)
    assert numbers.fingerprint.startswith("55e4f4a021b9")
    assert load_dataset("numbers", image_size=20).input_shape == (3, 20, 20)

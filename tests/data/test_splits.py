"""Splits are disjoint and stratified, and depend on the seed and the labels only."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcd_cli.data.splits import Part, split, with_noise
from mcd_cli.errors import UserError


def names(count: int) -> list[str]:
    return [f"c{i}" for i in range(count)]


def parts(*runs: tuple[Part, int]) -> np.ndarray:
    return np.concatenate([np.full(count, part, dtype=np.uint8) for part, count in runs])


@settings(deadline=None)
@given(st.lists(st.integers(3, 60), min_size=2, max_size=8), st.integers(0, 2**40))
def test_class_folders_are_cut_class_by_class(counts: list[int], seed: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    labels = np.random.default_rng(seed).permutation(labels)
    train, val, test = split(labels, parts((Part.ANY, len(labels))), names(len(counts)), seed)
    assert sorted([*train, *val, *test]) == list(range(len(labels)))
    for ids in (train, val, test):
        assert list(ids) == sorted(ids)
    for label, count in enumerate(counts):
        expected = max(1, int(count / 10 + 0.5))  # rounded, at least one
        assert Counter(labels[val])[label] == expected
        assert Counter(labels[test])[label] == expected


def test_an_official_test_set_is_kept_and_v_is_a_tenth_of_train() -> None:
    labels = np.tile(np.arange(10), 60)
    official = parts((Part.TRAIN, 500), (Part.TEST, 100))
    train, val, test = split(labels, official, names(10), split_seed=3)
    assert list(test) == list(range(500, 600))
    assert (len(train), len(val)) == (450, 50)
    assert set(Counter(labels[val]).values()) == {5}


def test_three_official_parts_need_no_seed() -> None:
    labels = np.array([0, 1, 0, 1, 0, 1])
    official = np.array([Part.TEST, Part.TRAIN, Part.TRAIN, Part.VAL, Part.VAL, Part.TEST], dtype=np.uint8)
    for seed in (0, 1):
        result = split(labels, official, names(2), seed)
        assert [list(ids) for ids in result] == [[1, 2], [3, 4], [0, 5]]


def test_the_seed_alone_decides() -> None:
    labels = np.repeat(np.arange(4), 50)
    draw = [split(labels, parts((Part.ANY, 200)), names(4), seed) for seed in (0, 0, 1)]
    assert np.array_equal(draw[0].val, draw[1].val)
    assert not np.array_equal(draw[0].val, draw[2].val)
    # Pinned: a run recorded today must find the same V on any machine and with any version of numpy.
    assert draw[0].val[:4].tolist() == [1, 15, 28, 30]


@pytest.mark.parametrize(
    ("labels", "official", "classes", "words"),
    [
        ([], [], [], "found no class folder"),
        ([0, 0, 0], [Part.ANY] * 3, ["a"], "only the class 'a'"),
        ([0, 0, 0, 1, 1], [Part.ANY] * 5, ["a", "b\nb"], "'b\\nb' has 2"),
        ([0, 0, 1, 0, 1], [Part.TRAIN] * 3 + [Part.TEST] * 2, ["a", "b"], "'b' has 1"),
        ([0, 1, 0, 1], [Part.TRAIN, Part.VAL, Part.VAL, Part.TEST], ["a", "b"], "'b' has 0"),
    ],
)
def test_what_cannot_be_split_is_told_by_name(labels, official, classes, words) -> None:
    with pytest.raises(UserError, match=r"needs") as caught:
        split(np.array(labels, dtype=np.int64), np.array(official, dtype=np.uint8), classes, 0)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(deadline=None)
@given(st.floats(0, 0.99), st.integers(2, 7), st.integers(0, 1000))
def test_label_noise_moves_exactly_its_share_of_train_to_other_classes(fraction, num_classes, seed) -> None:
    labels = np.arange(211) % num_classes
    train = np.arange(0, 200, 2)
    noisy = with_noise(labels, train, num_classes, fraction, seed)
    moved = np.flatnonzero(noisy != labels)
    assert len(moved) == int(100 * fraction + 0.5)
    assert set(moved) <= set(train)
    assert noisy.min() >= 0
    assert noisy.max() < num_classes


def test_label_noise_is_uniform_over_the_other_classes_and_nested() -> None:
    labels = np.zeros(8000, dtype=np.int64)
    train = np.arange(8000)
    noisy = with_noise(labels, train, 5, 0.5, 0)
    counts = Counter(noisy.tolist())
    assert counts[0] == 4000
    assert all(abs(counts[c] - 1000) < 120 for c in range(1, 5))  # 4 standard deviations
    less = with_noise(labels, train, 5, 0.25, 0)
    kept = less != 0
    assert np.array_equal(less[kept], noisy[kept])

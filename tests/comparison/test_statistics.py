"""Differences and their noise against enumeration, scipy, the analysis of variance and simulated coverage."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mcd_cli.comparison.statistics import bootstrap_errors, contrasts, holm


def mean_squares(table: np.ndarray) -> tuple[float, float, float]:
    """Of seeds, of images and of the rest, from a two-way table without repetitions."""
    num_seeds, num_images = table.shape
    of_seeds = num_images * table.mean(axis=1).var(ddof=1)
    of_images = num_seeds * table.mean(axis=0).var(ddof=1)
    total = ((table - table.mean()) ** 2).sum()
    rest = total - of_seeds * (num_seeds - 1) - of_images * (num_images - 1)
    return of_seeds, of_images, rest / ((num_seeds - 1) * (num_images - 1))


def drawn(seed: int, num_seeds: int, num_images: int, *spreads: float, count: int = 1) -> np.ndarray:
    """[count, seeds, images]: seed effects + image effects + what belongs to both, with these spreads."""
    random = np.random.default_rng(seed)
    a, b, e = spreads
    return (
        a * random.standard_normal((count, num_seeds, 1))
        + b * random.standard_normal((count, 1, num_images))
        + e * random.standard_normal((count, num_seeds, num_images))
    )


def test_bootstrap_is_the_enumerated_one() -> None:
    """All 2² draws of seeds with all 4⁴ draws of images, each weighed alike, instead of random ones."""
    table = np.array([[0.0, 1.0, 0.5, -1.0], [1.0, 1.0, -0.5, 0.0]])
    means = []
    for seeds in itertools.product(range(2), repeat=2):
        for images in itertools.product(range(4), repeat=4):
            resampled = table[:, images].mean(axis=1)
            usual, widened = resampled[list(seeds)].mean(), math.sqrt(2)
            means.append(resampled.mean() + widened * (usual - resampled.mean()))
    *_, rest = mean_squares(table)
    expected = np.sqrt(max(np.var(means) - 2 * rest / 8, rest / 8))
    (error,) = bootstrap_errors(table[None], resamples=40_000)
    assert error == pytest.approx(expected, rel=0.02)


def test_one_seed_is_scipys_bootstrap_over_images() -> None:
    values = drawn(1, 1, 300, 0, 1, 0)[0]
    theirs = stats.bootstrap((values[0],), np.mean, n_resamples=4000, method="basic", rng=np.random.default_rng(2))
    (error,) = bootstrap_errors(values[None])
    assert error == pytest.approx(theirs.standard_error, rel=0.05)
    contrast = contrasts({"one": values})["one"]
    assert (contrast.low, contrast.high) == pytest.approx(tuple(theirs.confidence_interval), abs=0.02)


def test_errors_are_those_of_the_analysis_of_variance() -> None:
    """E[MS] = e² + N a², e² + S b², e²: so (MS_seeds + MS_images − MS_rest) / SN is the mean's variance."""
    for i, spreads in enumerate([(0.3, 1.0, 3.0), (0.0, 3.0, 1.0), (1.0, 0.0, 1.0)]):
        table = drawn(i, 5, 200, *spreads)
        of_seeds, of_images, rest = mean_squares(table[0])
        expected = math.sqrt((of_seeds + of_images - rest) / table[0].size)
        assert bootstrap_errors(table, resamples=8000)[0] == pytest.approx(expected, rel=0.06)


def test_seeds_alone_are_students_t() -> None:
    """Where all images agree there are only the seeds: the one-sample t-test of their means."""
    by_seed = np.array([0.012, 0.031, 0.018, 0.044])
    contrast = contrasts({"one": np.repeat(by_seed[:, None], 50, axis=1)}, resamples=40_000)["one"]
    theirs = stats.ttest_1samp(by_seed, 0)
    interval = theirs.confidence_interval(0.95)
    assert contrast.df == pytest.approx(3)
    assert (contrast.low, contrast.high) == pytest.approx((interval.low, interval.high), rel=0.03)
    assert contrast.p == pytest.approx(theirs.pvalue, rel=0.05)


@pytest.mark.parametrize(("num_seeds", "spreads"), [(3, (0.3, 1.0, 3.0)), (3, (1.0, 0.3, 1.0)), (5, (0.05, 1.0, 5.0))])
def test_intervals_cover(num_seeds: int, spreads: tuple[float, float, float]) -> None:
    """400 comparisons without any difference: 95 % of the intervals hold 0, whoever makes the noise."""
    tables = drawn(7, num_seeds, 80, *spreads, count=400)
    found = contrasts(dict(enumerate(tables)), resamples=500).values()
    covered = np.mean([one.low <= 0 <= one.high for one in found])
    assert 0.92 <= covered <= 0.985
    assert np.mean([one.p < 0.05 for one in found]) == pytest.approx(1 - covered)  # p and interval are one


def test_a_real_difference_is_seen_and_none_is_not() -> None:
    table = drawn(3, 5, 400, 0.1, 0.5, 1)[0] + 1
    found = contrasts({"real": table, "none": np.zeros_like(table)})
    assert not found["real"].within_noise
    assert found["real"].difference == pytest.approx(1, abs=0.2)
    assert (found["none"].difference, found["none"].p, found["none"].se) == (0, 1, 0)
    assert (found["real"].num_seeds, found["real"].num_images) == (5, 400)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_same_data_same_figures() -> None:
    table = {"one": drawn(5, 3, 50, 1, 1, 1)[0]}
    assert contrasts(table) == contrasts(table)

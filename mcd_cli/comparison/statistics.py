"""Statistics of the difference between two methods: paired over seeds and test images, with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from scipy.stats import t as student_t

LEVEL = 0.95
RESAMPLES = 2000
_CHUNK = 250  # resamples at a time: a table of counts [chunk, images]

Key = TypeVar("Key", bound=Hashable)
Values = npt.NDArray[np.floating]


@dataclass(frozen=True)
class Contrast:
    """A mean paired difference, as a fraction; low and high: its 95 % interval; p: two-sided, p_holm: corrected."""

    difference: float
    se: float
    df: float
    low: float
    high: float
    p: float
    p_holm: float
    num_seeds: int
    num_images: int
    within_noise: bool  # p_holm above 1 - LEVEL


def contrasts(differences: Mapping[Key, Values], *, seed: int = 0, resamples: int = RESAMPLES) -> dict[Key, Contrast]:
    """One family of questions: each value holds paired differences [seeds, images] (all of one shape).

    The standard error comes from a bootstrap that resamples seeds and images, both with replacement, with the same
    draws for every question. It is corrected twice. Resampling both rows and columns counts the interaction of seed
    and image three times (Owen 2007, "The pigeonhole bootstrap"): two of these are subtracted. And few seeds vary too
    little when they are resampled: their part is widened by √(S/(S−1)), and the interval uses Student's t instead of
    the normal distribution (Hesterberg 2015), with degrees of freedom by Welch–Satterthwaite from the seeds' and the
    images' parts. With one seed, the interval holds only for that seed. p_holm: Holm (1979) over the family.
    """
    if not differences:
        return {}
    shapes = {value.shape for value in differences.values()}
    assert len(shapes) == 1, f"paired differences of several shapes: {shapes}"
    table = np.stack([np.asarray(value, dtype=np.float32) for value in differences.values()])
    means = table.mean(axis=(1, 2), dtype=np.float64)
    errors = bootstrap_errors(table, seed=seed, resamples=resamples)
    _, num_seeds, num_images = table.shape
    estimates = []
    for values, mean, se in zip(table, means.tolist(), errors.tolist(), strict=True):
        df = _degrees_of_freedom(values, se)
        half = se * float(student_t.ppf((1 + LEVEL) / 2, df))
        p = 2 * float(student_t.sf(abs(mean) / se, df)) if se > 0 else float(mean == 0)
        estimates.append((mean, se, df, mean - half, mean + half, p))
    corrected = holm([p for *_, p in estimates])
    return {
        key: Contrast(*values, p_holm, num_seeds, num_images, within_noise=p_holm > 1 - LEVEL)
        for key, values, p_holm in zip(differences, estimates, corrected, strict=True)
    }


def bootstrap_errors(table: Values, *, seed: int = 0, resamples: int = RESAMPLES) -> npt.NDArray[np.float64]:
    """Standard errors [P] of the means of table [P, seeds, images], by resampling rows and columns."""
    _, num_seeds, num_images = table.shape
    random = np.random.Generator(np.random.PCG64(seed))
    widen = math.sqrt(num_seeds / (num_seeds - 1)) if num_seeds > 1 else 0.0
    drawn = []
    for start in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - start)
        of_images = random.multinomial(num_images, np.full(num_images, 1 / num_images), size=size)
        of_seeds = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=size)
        shares = 1 / num_seeds + widen * (of_seeds / num_seeds - 1 / num_seeds)  # [b, S]
        means = table @ (of_images.T / num_images).astype(table.dtype)  # [P, S, b]
        drawn.append(np.einsum("psb,bs->pb", means, shares))
    variance = np.concatenate(drawn, axis=1).var(axis=1, ddof=1, dtype=np.float64)
    once = _residual(table) / (num_seeds * num_images)
    errors: npt.NDArray[np.float64] = np.sqrt(np.maximum(variance - 2 * once, once))
    return errors


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the i-th smallest of m (i from 0) times m − i, and never below an earlier one."""
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, dtype=np.float64)[order] * np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps)) if len(p) else steps
    return [float(value) for value in corrected]


def _residual(table: Values) -> npt.NDArray[np.float64]:
    """Variance [P] of what neither the seed nor the image explains: the interaction mean square; 0 with one seed."""
    _, num_seeds, num_images = table.shape
    if num_seeds == 1 or num_images == 1:
        return np.zeros(len(table))
    by_seed, by_image = table.mean(axis=2, keepdims=True), table.mean(axis=1, keepdims=True)
    rest = table - by_seed - by_image + by_seed.mean(axis=1, keepdims=True)
    freedom = (num_seeds - 1) * (num_images - 1)
    mean_square: npt.NDArray[np.float64] = np.square(rest).sum(axis=(1, 2), dtype=np.float64) / freedom
    return mean_square


def _degrees_of_freedom(values: Values, se: float) -> float:
    """Welch–Satterthwaite: the seeds' part of the variance has S − 1 degrees of freedom, the images' N − 1."""
    num_seeds, num_images = values.shape
    if num_seeds == 1 or se == 0:
        return float(max(1, num_images - 1))
    of_seeds = min(float(values.mean(axis=1, dtype=np.float64).var(ddof=1)) / num_seeds, se**2)
    of_images = se**2 - of_seeds
    parts = of_seeds**2 / (num_seeds - 1) + of_images**2 / max(1, num_images - 1)
    return float(se**4 / parts)

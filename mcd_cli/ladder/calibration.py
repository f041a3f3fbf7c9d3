"""Probabilities that mean what they say: one temperature per student, fitted on val (Guo et al. 2017).

z [N, C] are logits, y [N] labels. Everything is computed in float64, a block of images at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax, softmax

from mcd_cli.ladder.schema import MAX_TEMPERATURE, MIN_TEMPERATURE, Calibration, Score

NUM_BINS = 15
BLOCK = 2**20  # logits

Floats = npt.NDArray[np.floating]
Labels = npt.NDArray[np.int64]


def calibrate(logits: Mapping[str, tuple[Floats, Labels]]) -> tuple[Calibration | None, str]:
    """The temperature of "val", and the scores of every split; then a remark in a few words, mostly empty.

    None where a logit is not finite.
    """
    if not all(np.isfinite(z).all() for z, _ in logits.values()):
        return None, "logits are not finite, so it has no temperature"
    temperature, remark = fit_temperature(*logits["val"])
    raw, scaled = ({part: score(z, y, t) for part, (z, y) in logits.items()} for t in (1.0, temperature))
    return Calibration(temperature=temperature, raw=raw, scaled=scaled), remark


def fit_temperature(z: Floats, y: Labels) -> tuple[float, str]:
    """The T that minimises mean_i −log softmax(z_i / T)[y_i], and a remark where a bound decides instead.

    The NLL is convex in β = 1/T: its slope mean_i Σ_c p_ic (z_ic − z_iy) rises with β, and its root is bracketed.
    Where every label has the highest logit, there is no minimum, T → 0. N right answers of N do not prove more than a
    probability of (N + 1)/(N + 2) (Laplace's rule of succession), so T stops where the mean of p_iy reaches that.
    """

    def slope(z: Floats, y: Labels, beta: float) -> Floats:
        return np.asarray((softmax(beta * z, axis=1) * (z - _of_label(z, y)[:, None])).sum(axis=1))

    def excess(z: Floats, y: Labels, beta: float) -> Floats:
        return np.asarray(_of_label(softmax(beta * z, axis=1), y) - (num + 1) / (num + 2))

    from scipy.optimize import brentq  # takes a fifth of a second to import

    num = len(y)
    all_right = all((_of_label(z, y) == z.max(axis=1)).all() for z, y in _blocks(z, y))
    rises = _mean(excess if all_right else slope, z, y)
    low, high = np.log(1 / MAX_TEMPERATURE), np.log(1 / MIN_TEMPERATURE)
    if rises(low) >= 0:
        return MAX_TEMPERATURE, f"its logits do not tell val's classes apart: temperature {MAX_TEMPERATURE:g}, a bound"
    if rises(high) <= 0:
        return MIN_TEMPERATURE, f"its logits are nearly equal: temperature {MIN_TEMPERATURE:g}, a bound"
    temperature = float(np.exp(-brentq(rises, low, high, xtol=1e-12)))
    return temperature, f"every image of val is right: temperature {temperature:.3g}, a bound" if all_right else ""


def score(z: Floats, y: Labels, temperature: float = 1.0) -> Score:
    """Of softmax(z / T). ECE: Σ_b |B_b|/N · |accuracy(B_b) − confidence(B_b)| over bins ((b − 1)/15, b/15]."""
    nll, gaps = 0.0, np.zeros(NUM_BINS)
    inner = np.linspace(0, 1, NUM_BINS + 1)[1:-1]
    for z_block, y_block in _blocks(z, y):
        log_p = log_softmax(z_block / temperature, axis=1)
        nll -= float(_of_label(log_p, y_block).sum())
        confidence = np.exp(log_p.max(axis=1))
        gap = (z_block.argmax(axis=1) == y_block) - confidence
        gaps += np.bincount(np.digitize(confidence, inner, right=True), weights=gap, minlength=NUM_BINS)
    return Score(nll=max(0.0, nll / len(y)), ece=min(1.0, float(np.abs(gaps).sum()) / len(y)))


def _mean(of: Callable[[Floats, Labels, float], Floats], z: Floats, y: Labels) -> Callable[[float], float]:
    """The mean over images as a function of log β."""
    return lambda log_beta: sum(float(of(*block, np.exp(log_beta)).sum()) for block in _blocks(z, y)) / len(y)


def _blocks(z: Floats, y: Labels) -> Iterator[tuple[Floats, Labels]]:
    size = max(1, BLOCK // z.shape[1])
    for start in range(0, len(y), size):
        yield z[start : start + size].astype(np.float64), y[start : start + size]


def _of_label(values: Floats, y: Labels) -> Floats:
    return np.asarray(np.take_along_axis(values, y[:, None], axis=1)[:, 0])

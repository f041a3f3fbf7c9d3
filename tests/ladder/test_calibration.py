"""The temperature, NLL and ECE against other routes: a grid, Newton on autograd's derivatives, a loop by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mcd_cli.ladder import calibration
from mcd_cli.ladder.calibration import Floats, Labels, calibrate, fit_temperature, score
from mcd_cli.ladder.schema import MAX_TEMPERATURE, MIN_TEMPERATURE


def drawn(seed: int, scale: float, n: int = 400, num_classes: int = 5) -> tuple[Floats, Labels]:
    """Logits whose true temperature is `scale`: labels drawn from softmax(z / scale)."""
    random = np.random.default_rng(seed)
    z = random.normal(size=(n, num_classes)) * 2
    p = torch.tensor(z).softmax(dim=1).numpy()
    y = np.array([random.choice(num_classes, p=row) for row in p])
    return (scale * z).astype(np.float32), y


def nll(z: Floats, y: Labels, temperature: float) -> float:
    """By torch's own cross-entropy."""
    return float(torch.nn.functional.cross_entropy(torch.tensor(z).double() / temperature, torch.tensor(y)))


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 7.0, 300.0])
def test_the_temperature_against_a_grid_and_autograd(scale: float) -> None:
    z, y = drawn(0, scale)
    found, remark = fit_temperature(z, y)
    assert remark == ""
    grid = np.geomspace(scale / 2, scale * 2, 4001)
    best = grid[np.argmin([nll(z, y, t) for t in grid])]
    assert found == pytest.approx(best, rel=1e-3)  # the grid's step is 3.5e-4
    beta = torch.tensor(1 / best, dtype=torch.float64, requires_grad=True)
    for _ in range(20):  # Newton
        loss = torch.nn.functional.cross_entropy(torch.tensor(z).double() * beta, torch.tensor(y))
        (slope,) = torch.autograd.grad(loss, beta, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, beta)
        beta = (beta - slope / curvature).detach().requires_grad_()
    assert found == pytest.approx(1 / beta.item(), rel=1e-9)
    assert found == pytest.approx(scale, rel=0.25)  # what the labels were drawn with


def test_a_block_at_a_time_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    z, y = drawn(1, 3.0)
    whole = fit_temperature(z, y)[0], score(z, y, 2.0)
    monkeypatch.setattr(calibration, "BLOCK", 35)  # seven images
    assert fit_temperature(z, y)[0] == pytest.approx(whole[0], rel=1e-12)
    assert score(z, y, 2.0).nll == pytest.approx(whole[1].nll, rel=1e-12)
    assert score(z, y, 2.0).ece == pytest.approx(whole[1].ece, rel=1e-9)


def ece_by_hand(p: list[list[float]], y: list[int]) -> float:
    """Guo et al. 2017, Eq. 3, written out."""
    total = 0.0
    for b in range(1, 16):
        inside = [i for i in range(len(y)) if (b - 1) / 15 < max(p[i]) <= b / 15]
        if inside:
            accuracy = sum(p[i].index(max(p[i])) == y[i] for i in inside) / len(inside)
            confidence = sum(max(p[i]) for i in inside) / len(inside)
            total += len(inside) / len(y) * abs(accuracy - confidence)
    return total


@pytest.mark.parametrize("temperature", [1.0, 0.4, 9.0])
def test_scores_against_a_loop(temperature: float) -> None:
    z, y = drawn(2, 2.5)
    p = (torch.tensor(z).double() / temperature).softmax(dim=1).tolist()
    found = score(z, y, temperature)
    assert found.ece == pytest.approx(ece_by_hand(p, y.tolist()), abs=1e-12)
    assert found.nll == pytest.approx(-sum(math.log(row[c]) for row, c in zip(p, y, strict=True)) / len(y))
    assert found.ece > 0.01


def test_scores_that_are_known() -> None:
    sure = np.array([[50.0, 0.0], [50.0, 0.0]])
    assert score(sure, np.array([0, 1])).ece == pytest.approx(0.5)
    assert score(sure, np.array([0, 1])).nll == pytest.approx(25.0)
    even = np.zeros((4, 2))
    assert score(even, np.array([0, 0, 1, 1])).ece == 0  # confidence 1/2 in the first class, right in half
    assert score(even, np.array([0, 0, 1, 1])).nll == pytest.approx(math.log(2))


def test_the_temperature_lowers_val_and_leaves_the_classes() -> None:
    z, y = drawn(3, 6.0)
    found, remark = calibrate({"val": (z, y), "test": drawn(4, 6.0)})
    assert (found is not None, remark) == (True, "")
    assert found is not None
    for part in ("val", "test"):
        assert found.scaled[part].nll < found.raw[part].nll
        assert found.scaled[part].ece < found.raw[part].ece
    assert found.scaled["val"].nll == pytest.approx(nll(z, y, found.temperature))


@pytest.mark.parametrize("num", [1, 10, 500])
def test_all_right_is_bounded_by_what_so_many_images_prove(num: int) -> None:
    """T → 0 is no answer: the mean probability of the label stops at (N + 1)/(N + 2)."""
    random = np.random.default_rng(0)
    z = random.normal(size=(num, 4)).astype(np.float32)
    y = z.argmax(axis=1)
    found, remark = fit_temperature(z, y)
    assert remark == f"every image of val is right: temperature {found:.3g}, a bound"
    p = (torch.tensor(z).double() / found).softmax(dim=1).max(dim=1).values
    assert float(p.mean()) == pytest.approx((num + 1) / (num + 2))


def test_temperatures_at_the_bounds() -> None:
    z, y = drawn(5, 1.0)
    assert fit_temperature(1e-6 * z, y) == (MIN_TEMPERATURE, "its logits are nearly equal: temperature 0.001, a bound")
    backwards, remark = fit_temperature(-z, y)
    assert backwards == MAX_TEMPERATURE
    assert "do not tell val's classes apart" in remark
    assert fit_temperature(np.zeros((3, 2), np.float32), np.array([0, 1, 1]))[0] == MIN_TEMPERATURE  # any is as good


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["val", "test"])
def test_logits_that_are_not_finite_have_no_temperature(bad: float, part: str) -> None:
    z, y = drawn(6, 1.0)
    broken = z.copy()
    broken[3, 1] = bad
    found, remark = calibrate({"val": (z, y), "test": (z, y)} | {part: (broken, y)})
    assert (found, remark) == (None, "logits are not finite, so it has no temperature")


@settings(max_examples=60, derandomize=True, database=None, deadline=None)
@given(st.integers(0, 10**6), st.floats(-37, 37), st.integers(1, 30), st.integers(2, 6))
def test_any_logits_have_scores_that_a_manifest_takes(seed: int, exponent: float, n: int, num_classes: int) -> None:
    """From 1e-37 to 1e37, where a block of float32 ends."""
    random = np.random.default_rng(seed)
    z = (random.normal(size=(n, num_classes)) * 10.0**exponent).astype(np.float32)
    y = random.integers(0, num_classes, n)
    found, _ = calibrate({"val": (z, y)})
    assert found is not None
    assert MIN_TEMPERATURE <= found.temperature <= MAX_TEMPERATURE
    assert found.scaled["val"].nll <= found.raw["val"].nll * (1 + 1e-9) or (z.argmax(axis=1) == y).all()

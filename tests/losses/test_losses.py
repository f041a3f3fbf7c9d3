"""Every loss for one image at a time, from its paper's formula in plain numpy, and its gradient from differences."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mcd_cli.losses import LOSSES

Vector = NDArray[np.float64]
N, K, C = 6, 3, 7
Y = torch.tensor([0, 1, 2, 3, 6, 0])
TAUS = [1.0, 2.0, 4.0]
PER_IMAGE = [name for name, row in LOSSES.items() if row.per_image]


def softmax(x: Vector) -> Vector:
    e = np.exp(x - x.max())
    return e / e.sum()


def entropy_to(p: Vector, q: Vector) -> float:
    return -sum(a * np.log(b) for a, b in zip(p, q, strict=True) if a > 0)


def kl(p: Vector, q: Vector) -> float:
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def bit(b: float) -> Vector:
    return np.array([b, 1 - b])


def standard(x: Vector) -> Vector:
    return (x - x.mean()) / (np.sqrt(((x - x.mean()) ** 2).sum() / (len(x) - 1)) + 1e-7)


def kd(z: Vector, t: Vector, y: int, tau: float) -> float:
    return tau**2 * kl(softmax(t / tau), softmax(z / tau))


def tckd(z: Vector, t: Vector, y: int, tau: float) -> float:
    return tau**2 * kl(bit(softmax(t / tau)[y]), bit(softmax(z / tau)[y]))


def nckd(z: Vector, t: Vector, y: int, tau: float) -> float:
    return kd(np.delete(z, y), np.delete(t, y), y, tau)


def scd(z: Vector, t: Vector, y: int, tau: float) -> float:
    return tau**2 * kl(bit(softmax(t / tau).max()), bit(softmax(z / tau)[y]))


def mcd(z: Vector, t: Vector, y: int, tau: float) -> float:
    below = [c for c in range(len(t)) if t[c] < t[y]]
    return kd(z[below], t[below], y, tau) if below else 0.0


def normkd(z: Vector, t: Vector, y: int, tau: float) -> float:
    a_t, a_s = tau * t.std(ddof=1), tau * z.std(ddof=1)
    return a_t**2 * kl(softmax(t / a_t), softmax(z / a_s))


def ttm(z: Vector, t: Vector, y: int, tau: float) -> float:
    power = softmax(t) ** (1 / tau)
    return kl(power / power.sum(), softmax(z))


def wttm(z: Vector, t: Vector, y: int, tau: float) -> float:
    return (softmax(t) ** (1 / tau)).sum() * ttm(z, t, y, tau)


def wsld(z: Vector, t: Vector, y: int, tau: float, omega: float | None = None) -> float:
    return omega_of(z, t, y) * soft(z, t, tau)


def omega_of(z: Vector, t: Vector, y: int) -> float:
    return 1 - np.exp(-np.log(softmax(z)[y]) / (np.log(softmax(t)[y]) - 1e-7))


def soft(z: Vector, t: Vector, tau: float) -> float:
    return tau**2 * entropy_to(softmax(t / tau), softmax(z / tau))


FORMULAS: dict[str, Callable[[Vector, Vector, int, float], float]] = {
    "ce": lambda z, t, y, tau: -np.log(softmax(z)[y]),
    "kd": kd,
    "tckd": tckd,
    "nckd": nckd,
    "lskd": lambda z, t, y, tau: kd(standard(z), standard(t), y, tau),
    "lskd-tckd": lambda z, t, y, tau: tckd(standard(z), standard(t), y, tau),
    "lskd-nckd": lambda z, t, y, tau: nckd(standard(z), standard(t), y, tau),
    "normkd": normkd,
    "nkd-target": lambda z, t, y, tau: -softmax(t / tau)[y] * np.log(softmax(z)[y]),
    "nkd-others": lambda z, t, y, tau: (
        tau**2 * entropy_to(softmax(np.delete(t, y) / tau), softmax(np.delete(z, y) / tau))
    ),
    "ttm": ttm,
    "wttm": wttm,
    "rld-scd": scd,
    "rld-mcd": mcd,
    "dist-inter": lambda z, t, y, tau: tau**2 * (1 - np.corrcoef(softmax(z / tau), softmax(t / tau))[0, 1]),
    "wsld": wsld,
}


def logits(seed: int, *shape: int, spread: float = 2.0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return spread * torch.randn(*shape, C, generator=draw, dtype=torch.float64)


@pytest.fixture
def z() -> Tensor:
    return logits(0, N, K).requires_grad_()


@pytest.fixture
def t() -> Tensor:
    """One target per image, [N, 1, C]: right about some labels, wrong about others, once last."""
    t = logits(1, N, 1, spread=4.0)
    t[0, 0, Y[0]] = t.max() + 1
    t[1, 0, Y[1]] = t.min() - 1
    return t


def loss(name: str, z: Tensor, t: Tensor, tau: float, y: Tensor = Y) -> Tensor:
    value: Tensor = LOSSES.load(name)(z, t, y, tau)
    return value


def gradient(name: str, z: Tensor, t: Tensor, tau: float, y: Tensor = Y) -> Tensor:
    return torch.autograd.grad(loss(name, z, t, tau, y).sum(), z)[0]


def test_every_loss_of_an_image_has_a_formula_here() -> None:
    assert set(FORMULAS) == set(PER_IMAGE)
    assert set(LOSSES) - set(PER_IMAGE) == {"dist-intra"}


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("name", PER_IMAGE)
def test_its_value_is_the_formulas(name: str, tau: float, z: Tensor, t: Tensor) -> None:
    values = loss(name, z, t, tau).detach().numpy()
    assert values.shape == (N, K)
    expected = [
        [FORMULAS[name](z[i, j].detach().numpy(), t[i, 0].numpy(), int(Y[i]), tau) for j in range(K)] for i in range(N)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-6 if name == "normkd" else 1e-10, atol=1e-11)


@pytest.mark.parametrize("tau", TAUS)
@pytest.mark.parametrize("name", PER_IMAGE)
def test_its_gradient_is_the_formulas_slope(name: str, tau: float, z: Tensor, t: Tensor) -> None:
    """Central differences of the formula; the constant factor of wsld is kept where it is."""
    found = gradient(name, z, t, tau).numpy()
    for i in range(N):
        for j in range(K):
            at, target, y = z[i, j].detach().numpy(), t[i, 0].numpy(), int(Y[i])
            omega = omega_of(at, target, y)

            def f(x: Vector, target: Vector = target, y: int = y, omega: float = omega) -> float:
                return omega * soft(x, target, tau) if name == "wsld" else FORMULAS[name](x, target, y, tau)

            steps = 1e-5 * np.eye(C)
            slope = [(f(at + step) - f(at - step)) / 2e-5 for step in steps]
            np.testing.assert_allclose(found[i, j], slope, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.follows])
def test_it_takes_a_target_per_student_and_several_at_once(name: str, z: Tensor, t: Tensor) -> None:
    own = logits(2, N, K)
    together = loss(name, z[:, :, None], torch.stack([t.expand(N, K, C), own], dim=2), 2.0)
    assert together.shape == (N, K, 2)
    torch.testing.assert_close(together[..., 0], loss(name, z, t, 2.0))
    for j in range(K):
        torch.testing.assert_close(together[:, j, 1], loss(name, z[:, j], own[:, j], 2.0))
    two = torch.stack([t, logits(3, N, 1)], dim=2)  # [N, 1, 2, C]: masks of the target and of the student broadcast
    torch.testing.assert_close(loss(name, z[:, :, None], two, 2.0)[..., 0], loss(name, z, t, 2.0))


@pytest.mark.parametrize("name", LOSSES)
def test_students_do_not_see_each_other_and_images_only_in_batch_statistics(name: str, z: Tensor, t: Tensor) -> None:
    """∂ℓ_ij/∂z_kl = 0 unless (i, j) = (k, l): what the meta-gradient rests on. dist-intra only in constants."""
    values = loss(name, z, t, 2.0)
    for i in range(N):
        for j in range(K):
            slope = torch.autograd.grad(values[i, j], z, retain_graph=True)[0]
            slope[i, j] = 0
            assert not slope.any()
    if LOSSES[name].per_image:
        torch.testing.assert_close(loss(name, z[2:4], t[2:4], 2.0, Y[2:4]), values[2:4])


@pytest.mark.parametrize("name", LOSSES)
def test_no_gradient_flows_into_what_is_detached_and_the_loss_is_not_flat(name: str, z: Tensor, t: Tensor) -> None:
    assert gradient(name, z, t, 2.0).norm() > 1e-3
    torch.testing.assert_close(gradient(name, z, t, 2.0).sum(dim=-1), torch.zeros(N, K).double(), atol=1e-9, rtol=0)


# Closed forms of the docstrings.


def parts(z: Tensor, t: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """e_y, p, q, and p̂, q̂ by division."""
    e = torch.nn.functional.one_hot(Y, C).double()[:, None]
    p, q = (t / tau).softmax(-1), (z.detach() / tau).softmax(-1)
    return e, p, q, *(x * (1 - e) / (x * (1 - e)).sum(-1, keepdim=True) for x in (p, q))  # type: ignore[return-value]


@pytest.mark.parametrize("tau", TAUS)
def test_closed_gradients(tau: float, z: Tensor, t: Tensor) -> None:
    e, p, q, p_others, q_others = parts(z, t, tau)
    b_t, b_s = (p * e).sum(-1, keepdim=True), (q * e).sum(-1, keepdim=True)
    q_1 = z.detach().softmax(-1)
    closed = {
        "ce": q_1 - e,
        "kd": tau * (q - p),
        "tckd": tau * (b_s - b_t) * (e - q_others),
        "nckd": tau * (q_others - p_others),
        "nkd-target": b_t * (q_1 - e),
        "nkd-others": tau * (q_others - p_others),
        "ttm": q_1 - p,
    }
    for name, expected in closed.items():
        torch.testing.assert_close(gradient(name, z, t, tau), expected.expand(N, K, C), rtol=1e-9, atol=1e-11)


# Identities.


@pytest.mark.parametrize("tau", TAUS)
def test_kd_is_tckd_and_nckd_weighted_by_what_the_target_leaves_to_others(tau: float, z: Tensor, t: Tensor) -> None:
    b_t = (t / tau).softmax(-1)[torch.arange(N), 0, Y][:, None]
    sides = (loss("kd", z, t, tau), loss("tckd", z, t, tau) + (1 - b_t) * loss("nckd", z, t, tau))
    torch.testing.assert_close(*sides, rtol=1e-11, atol=1e-13)
    slopes = [torch.autograd.grad(side.sum(), z)[0] for side in sides]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-13)


def test_rld_is_dkd_where_the_target_is_right(z: Tensor, t: Tensor) -> None:
    right = t[:, 0].argmax(-1) == Y
    assert right.any()
    assert not right.all()
    for own, dkd, tau in (("rld-scd", "tckd", 1.0), ("rld-mcd", "nckd", 4.0)):
        a, b = loss(own, z, t, tau), loss(dkd, z, t, tau)
        torch.testing.assert_close(a[right], b[right], rtol=1e-11, atol=1e-13)
        assert (a - b)[~right].abs().min() > 1e-6
    assert not loss("rld-mcd", z, t, 4.0)[1].any()  # the label is the target's last: nothing is below it


def test_rld_skips_ties_with_the_label() -> None:
    z, t = logits(0, 1, 1)[..., :3].requires_grad_(), torch.tensor([[[1.0, 1.0, 0.0]]]).double()
    assert loss("rld-mcd", z, t, 4.0, torch.tensor([0])).item() == 0  # one class is left: nothing to distinguish


def test_nkds_others_are_nckd_and_a_constant(z: Tensor, t: Tensor) -> None:
    difference = (loss("nkd-others", z, t, 2.0) - loss("nckd", z, t, 2.0)).detach()
    torch.testing.assert_close(difference, difference[:, :1].expand(N, K))
    torch.testing.assert_close(gradient("nkd-others", z, t, 2.0), gradient("nckd", z, t, 2.0))


def test_wttm_of_a_sure_target_is_ttm_and_ttm_at_one_is_kd(z: Tensor, t: Tensor) -> None:
    torch.testing.assert_close(loss("wttm", z, 1e3 * t, 5.0), loss("ttm", z, 1e3 * t, 5.0))
    torch.testing.assert_close(loss("ttm", z, t, 1.0), loss("kd", z, t, 1.0))
    uniform = torch.zeros_like(t)
    torch.testing.assert_close(loss("wttm", z, uniform, 5.0), C**0.8 * loss("ttm", z, uniform, 5.0))


def test_wsld_weighs_kds_gradient_by_what_the_student_still_lacks(z: Tensor, t: Tensor) -> None:
    ratio = gradient("wsld", z, t, 2.0) / gradient("kd", z, t, 2.0)
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    assert ((ratio > 0) & (ratio <= 1)).all()
    p = (t / 2).softmax(-1)
    omega = loss("wsld", t, t, 2.0) / (4 * -(p * p.log()).sum(-1))  # where both know the same
    torch.testing.assert_close(omega, torch.full((N, 1), 1 - np.exp(-1)).double(), rtol=1e-3, atol=0)


# Invariances.


@pytest.mark.parametrize("name", ["lskd", "lskd-tckd", "lskd-nckd", "normkd"])
def test_standardised_losses_leave_the_scale_alone(name: str, z: Tensor, t: Tensor) -> None:
    slope, centred = gradient(name, z, t, 2.0), (z - z.mean(-1, keepdim=True)).detach()
    for direction in (torch.ones_like(centred), centred):
        along = (slope * direction).sum(-1) / slope.norm(dim=-1) / direction.norm(dim=-1)
        assert along.abs().max() < 1e-6
    torch.testing.assert_close(loss(name, 3 * z + 5, t, 2.0), loss(name, z, t, 2.0), rtol=1e-6, atol=1e-9)


def test_standardised_kd_at_high_temperature_is_half_the_squared_distance(z: Tensor, t: Tensor) -> None:
    """τ² KL → ‖z̃ − t̃‖²/2C = (1 − 1/C)(1 − ρ), ρ the correlation of the logits: τ² keeps its scale."""
    values = loss("lskd", z, t, 1e4).detach()
    for i in range(N):
        for j in range(K):
            rho = np.corrcoef(z[i, j].detach().numpy(), t[i, 0].numpy())[0, 1]
            assert values[i, j].item() == pytest.approx((1 - 1 / C) * (1 - rho), rel=1e-3)


@pytest.mark.parametrize("name", [name for name, row in LOSSES.items() if row.follows])
def test_a_shift_of_the_logits_changes_nothing(name: str, z: Tensor, t: Tensor) -> None:
    torch.testing.assert_close(loss(name, z + 3, t - 7, 2.0), loss(name, z, t, 2.0), rtol=1e-9, atol=1e-10)


# DIST over the images of a batch.


def true_intra(z: Tensor, t: Tensor, tau: float) -> Tensor:
    """The batch's loss of each student by numpy's definition of a correlation, in torch for its gradient."""
    q, p = (z / tau).softmax(-1), (t / tau).softmax(-1).expand(N, K, C)
    losses = []
    for j in range(K):
        for c in range(C):
            x, y = q[:, j, c], p[:, j, c]
            covariance = (x * y).mean() - x.mean() * y.mean()
            deviations = ((x**2).mean() - x.mean() ** 2).sqrt() * ((y**2).mean() - y.mean() ** 2).sqrt()
            losses.append(tau**2 * (1 - covariance / deviations))
    return torch.stack(losses).view(K, C).mean(dim=-1)


@pytest.mark.parametrize("tau", TAUS)
def test_intra_is_the_batchs_loss_in_the_mean(tau: float, z: Tensor, t: Tensor) -> None:
    true = true_intra(z, t, tau)
    values = loss("dist-intra", z, t, tau)
    torch.testing.assert_close(values.mean(dim=0), true, rtol=1e-9, atol=1e-11)
    expected = torch.autograd.grad(true.sum(), z)[0]
    assert expected.norm() > 1e-3
    torch.testing.assert_close(gradient("dist-intra", z, t, tau) / N, expected, rtol=1e-8, atol=1e-11)


# Extreme logits.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 30.0, 1e3, 1e6, 1e30])
@pytest.mark.parametrize("name", LOSSES)
def test_extreme_logits_give_finite_values_and_gradients(name: str, size: float, dtype: torch.dtype) -> None:
    """Sure and wrong, sure and right, all equal; for students, targets and both."""
    if name == "normkd":
        size = min(size, 1e15)  # its value is in proportion to the target's variance, and that must be a number
    rows = torch.tensor([[1, -1, 0], [-1, 1, 0], [0, 0, 0], [1, 1, 1], [0, 1, 1]], dtype=dtype) * size
    z = rows.repeat_interleave(len(rows), 0)[:, None].clone().requires_grad_()
    t = rows.repeat(len(rows), 1)[:, None]
    row = LOSSES[name]
    for y in range(3):
        values = loss(name, z, t, row.tau or 1.0, torch.full((len(z),), y))
        assert values.isfinite().all()
        assert torch.autograd.grad(values.sum(), z)[0].isfinite().all()


def test_a_sure_and_wrong_student_pays_in_proportion() -> None:
    """The probability of the label rounds to 0 here, its logarithm does not; b_T = 0.045, τ = 1."""
    z = torch.tensor([[[1e4, 0.0, -1e4]]])
    t = torch.tensor([[[0.0, 0.0, 3.0]]])
    y = torch.tensor([1])
    for name in ("ce", "kd", "tckd", "nckd", "ttm", "rld-scd"):
        assert loss(name, z, t, 1.0, y) / 1e4 > 0.04, name
    tiny = loss("tckd", torch.tensor([[[0.0, 60.0, 0.0]]]), t, 1.0, y).item()
    b = torch.tensor([0.0, 0.0, 3.0]).softmax(-1)[1].item()
    assert tiny == pytest.approx(b * np.log(b) + (1 - b) * (np.log(1 - b) + 60 - np.log(2)), rel=1e-5)

"""A bank of losses for each image: Eq. 1 and 5 against numpy and torch's own KL, ramps, targets, order."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mcd_cli.losses import LARGER, LOSSES, POOLED, term
from mcd_cli.losses.bank import instance_losses, label_and
from mcd_cli.losses.ce import cross_entropy
from mcd_cli.losses.targets import pooled

N, K, G, C, TAU = 7, 3, 2, 5, 2.0


@pytest.fixture
def z() -> Tensor:
    return 3 * torch.randn(N, K, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def targets() -> Tensor:
    return 3 * torch.randn(N, 1, G, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


Y = torch.tensor([0, 1, 2, 3, 4, 0, 1])


def distillation(z: Tensor, targets: Tensor, tau: float) -> Tensor:
    """kd to each target: the bank of Eq. 5 without its label loss."""
    return instance_losses(z, Y, targets, label_and(targets.shape[2], tau)[1:])


def test_cross_entropy_is_minus_log_softmax_at_the_label(z: Tensor) -> None:
    e = np.exp(z.numpy())
    p = e / e.sum(axis=-1, keepdims=True)
    expected = [[-np.log(p[i, j, Y[i]]) for j in range(K)] for i in range(N)]
    np.testing.assert_allclose(cross_entropy(z, Y).numpy(), expected, rtol=1e-12)


def test_distillation_is_torchs_kl_of_teacher_to_student(z: Tensor, targets: Tensor) -> None:
    kd = distillation(z, targets, TAU)
    assert kd.shape == (N, K, G)
    for j in range(K):
        for g in range(G):
            p, log_q = F.softmax(targets[:, 0, g] / TAU, -1), F.log_softmax(z[:, j] / TAU, -1)
            expected = TAU**2 * F.kl_div(log_q, p, reduction="none").sum(-1)
            torch.testing.assert_close(kd[:, j, g], expected, rtol=1e-12, atol=1e-13)


def test_distillation_takes_a_target_per_student(z: Tensor) -> None:
    own = z.flip(0)[:, :, None]  # [n, k, 1, C]
    for j in range(K):
        alone = distillation(z[:, j : j + 1], own[:, j : j + 1], TAU)
        torch.testing.assert_close(distillation(z, own, TAU)[:, j : j + 1], alone)


def test_distillation_vanishes_at_equality_and_only_there(z: Tensor) -> None:
    same = distillation(z, z[:, :, None] + 4.0, TAU)  # softmax does not see the shift
    assert same.abs().max() < 1e-12
    assert (distillation(z, z.flip(0)[:, :, None], TAU)[:3] > 1e-3).all()


def test_no_gradient_flows_through_the_pool(z: Tensor) -> None:
    """The gradient of kd to the pool is that of kd to the same numbers as constants: softmax differences."""
    live = z.clone().requires_grad_()
    target = pooled(live, Y)
    distillation(live, target[:, None, None], TAU).sum().backward()
    expected = TAU * (F.softmax(z / TAU, -1) - F.softmax(target / TAU, -1)[:, None])
    torch.testing.assert_close(live.grad, expected, rtol=1e-10, atol=1e-12)


def test_instance_losses_stand_side_by_side(z: Tensor, targets: Tensor) -> None:
    together = instance_losses(z, Y, targets, label_and(G, TAU))
    assert together.shape == (N, K, 1 + G)
    torch.testing.assert_close(together[:, :, 0], cross_entropy(z, Y))
    torch.testing.assert_close(together[:, :, 1:], distillation(z, targets, TAU))
    assert instance_losses(z, Y, None, label_and(0, TAU)).shape == (N, K, 1)


def test_each_loss_has_its_own_temperature_and_target(z: Tensor) -> None:
    """Against one call of each loss with its own target, also where neighbours share one."""
    draw = torch.Generator().manual_seed(2)
    bank = (
        term("nckd"),
        term("kd", tau=3.0),
        term("kd", tau=3.0, follows=LARGER),
        term("ce"),
        term("kd", tau=1.0, follows=POOLED),
    )
    targets = 3 * torch.randn(N, K, 4, C, generator=draw, dtype=torch.float64)
    together = instance_losses(z, Y, targets, bank)
    assert together.shape == (N, K, 5)
    for c, (loss, tau, g) in enumerate(
        [("nckd", 4.0, 0), ("kd", 3.0, 1), ("kd", 3.0, 2), ("ce", 1.0, 0), ("kd", 1.0, 3)]
    ):
        for j in range(K):
            alone = LOSSES.load(loss)(z[:, j], targets[:, j, g], Y, tau)
            torch.testing.assert_close(together[:, j, c], alone)


def test_a_ramp_grows_from_nothing_to_the_whole_loss(z: Tensor, targets: Tensor) -> None:
    bank = (term("ce"), term("kd", tau=TAU, ramp=0.25), term("kd", tau=TAU))
    whole = instance_losses(z, Y, targets, bank)
    for done, factor in ((1e-3, 4e-3), (0.125, 0.5), (0.25, 1.0), (0.6, 1.0), (1.0, 1.0)):
        found = instance_losses(z, Y, targets, bank, torch.tensor(done))
        torch.testing.assert_close(found, whole * torch.tensor([1.0, factor, 1.0]), rtol=1e-6, atol=0)


def test_a_terms_defaults_are_its_rows() -> None:
    own = term("nckd")
    assert (own.name, own.follows, own.tau, own.weight, own.ramp) == ("nckd", "teacher", 4.0, 8.0, 1 / 12)
    assert term("nckd", weight=0.0, ramp=0.0).weight == 0
    assert term("kd", follows=POOLED).name == "kd/pooled"
    assert term("kd", recipe_tau=7.0).tau == 7
    assert term("lskd", recipe_tau=7.0).tau == 2


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    """float32 logits far beyond exp's range, of students and of teachers alike."""
    z = torch.tensor([[[size, -size, 0.0]], [[-size, size, 0.0]]], requires_grad=True)
    targets = torch.tensor([[[[-size, size, 0.0]]], [[[-size, size, 1.0]]]])
    losses = instance_losses(z, torch.tensor([1, 1]), targets, label_and(1, TAU))
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(z.grad).all()
    assert losses[0, 0].min() >= size  # as wrong as can be, and it says so
    assert losses[1, 0].max() < 1e-3  # right

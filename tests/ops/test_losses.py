"""Eq. 1, 4 and 5 for each image, against numpy and torch's own KL in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mcd_cli.ops.losses import cross_entropy, distillation, instance_losses, pooled

N, K, G, C, TAU = 7, 3, 2, 5, 2.0


@pytest.fixture
def z() -> Tensor:
    return 3 * torch.randn(N, K, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture
def targets() -> Tensor:
    return 3 * torch.randn(N, 1, G, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


Y = torch.tensor([0, 1, 2, 3, 4, 0, 1])


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


def test_pooled_is_the_maximum_at_the_label_and_the_minimum_elsewhere(z: Tensor) -> None:
    z = z.requires_grad_()
    ours = pooled(z, Y)
    for i in range(N):
        for c in range(C):
            over_students = [z[i, j, c].item() for j in range(K)]
            assert ours[i, c].item() == (max if c == Y[i] else min)(over_students)
    assert not ours.requires_grad


def test_no_gradient_flows_through_the_pool(z: Tensor) -> None:
    """The gradient of kd to the pool is that of kd to the same numbers as constants: softmax differences."""
    live = z.clone().requires_grad_()
    target = pooled(live, Y)
    distillation(live, target[:, None, None], TAU).sum().backward()
    expected = TAU * (F.softmax(z / TAU, -1) - F.softmax(target / TAU, -1)[:, None])
    torch.testing.assert_close(live.grad, expected, rtol=1e-10, atol=1e-12)


def test_instance_losses_stand_side_by_side(z: Tensor, targets: Tensor) -> None:
    together = instance_losses(z, Y, targets, TAU)
    assert together.shape == (N, K, 1 + G)
    torch.testing.assert_close(together[:, :, 0], cross_entropy(z, Y))
    torch.testing.assert_close(together[:, :, 1:], distillation(z, targets, TAU))
    assert instance_losses(z, Y, None, TAU).shape == (N, K, 1)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_extreme_logits_stay_finite(size: float) -> None:
    """float32 logits far beyond exp's range, of students and of teachers alike."""
    z = torch.tensor([[[size, -size, 0.0]], [[-size, size, 0.0]]], requires_grad=True)
    targets = torch.tensor([[[[-size, size, 0.0]]], [[[-size, size, 1.0]]]])
    losses = instance_losses(z, torch.tensor([1, 1]), targets, TAU)
    losses.sum().backward()
    assert torch.isfinite(losses).all()
    assert torch.isfinite(z.grad).all()
    assert losses[0, 0].min() >= size  # as wrong as can be, and it says so
    assert losses[1, 0].max() < 1e-3  # right

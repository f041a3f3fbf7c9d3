"""Targets made of the students' logits: who follows whom, and no gradient."""

from __future__ import annotations

import torch

from mcd_cli.losses.targets import next_larger, pooled

N, K, C = 5, 3, 4
Y = torch.tensor([0, 1, 2, 3, 0])


def test_pooled_is_the_best_at_the_label_and_the_worst_elsewhere() -> None:
    z = torch.randn(N, K, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target = pooled(z, Y)
    for i in range(N):
        for c in range(C):
            over_students = [z[i, j, c].item() for j in range(K)]
            assert target[i, c].item() == (max if c == Y[i] else min)(over_students)
    assert not target.requires_grad


def test_the_next_larger_student_and_above_all_the_teacher() -> None:
    z = torch.randn(N, K, C).requires_grad_()
    z_teacher = torch.randn(N, C)
    target = next_larger(z, z_teacher)
    assert target.shape == (N, K, C)
    assert torch.equal(target[:, 0], z_teacher)
    for j in range(1, K):
        assert torch.equal(target[:, j], z[:, j - 1])
    assert not target.requires_grad
    assert torch.equal(next_larger(z[:, :1], z_teacher)[:, 0], z_teacher)

"""The label loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Label loss at temperature 1: ce_ij = −log softmax(z_ij)[y_i]; ∂/∂z = softmax(z) − e_y.

    z: logits [n, …, C]; y: labels [n]. Returns [n, …].
    """
    labels = y.view(-1, *(1,) * (z.dim() - 2)).expand(z.shape[:-1])
    return F.cross_entropy(z.flatten(0, -2), labels.flatten(), reduction="none").view(z.shape[:-1])


def ce(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """`cross_entropy` as a row of the table: there is no target and no temperature."""
    return cross_entropy(z, y)

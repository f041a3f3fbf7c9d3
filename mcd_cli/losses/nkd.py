"""NKD (Yang et al., ICCV 2023): the label at the target's probability, and the other classes among themselves.

The paper: ce + target + 1.5 others, τ = 1. p and q are the softmax of t and z, p̂ and q̂ those at τ among the classes
other than the label.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mcd_cli.losses.ce import cross_entropy
from mcd_cli.losses.probabilities import is_label, log_softmax_among, pick


def target(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """target_ij = −softmax(t/τ)[y] log softmax(z)[y]; ∂/∂z = softmax(t/τ)[y] (softmax(z) − e_y).

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels [n]. Returns [n, …].
    """
    return pick(F.softmax(t / tau, dim=-1), is_label(t, y)) * cross_entropy(z, y)


def others(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """others_ij = −τ² Σ_{c≠y} p̂_c log q̂_c; ∂/∂z = τ(q̂ − p̂), 0 at the label.

    It is nckd plus a constant, the entropy of p̂. z: logits [n, …, C]; t: target logits [n, …, C]; y: labels [n].
    Returns [n, …].
    """
    kept = ~is_label(t, y)
    log_q = log_softmax_among(z / tau, kept).masked_fill(~kept, 0)
    return -(tau**2) * (log_softmax_among(t / tau, kept).exp() * log_q).sum(dim=-1)

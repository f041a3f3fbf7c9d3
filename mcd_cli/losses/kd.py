"""KD (Hinton et al. 2015): the student follows the target's softened probabilities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mcd_cli.losses.probabilities import divergence


def kd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """kd_ij = τ² Σ_c p_c log(p_c/q_c), p = softmax(t/τ), q = softmax(z/τ); ∂/∂z = τ(q − p).

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels, not needed. Returns [n, …]. mdistiller's weights:
    0.1 ce + 0.9 kd, τ = 4.
    """
    log_q = F.log_softmax(z / tau, dim=-1)
    log_p = F.log_softmax(t / tau, dim=-1)
    return tau**2 * divergence(log_p, log_q)

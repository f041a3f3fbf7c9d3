"""WSLD (Zhou et al., ICLR 2021): kd counts less on images where the student is better than the target."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd_cli.losses.ce import cross_entropy


def wsld(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """wsld_ij = ω_ij τ² Σ_c −p_c log q_c, ω_ij = 1 − exp(−ce(z_ij)/ce(t_i)), p = softmax(t/τ), q = softmax(z/τ).

    ω is a constant, its cross-entropies are at temperature 1; ∂/∂z = ω τ(q − p). z: logits [n, …, C]; t: target logits
    [n, …, C]; y: labels [n]. Returns [n, …]. The authors: ce + 2.5 wsld, τ = 2 (ImageNet).
    """
    with torch.no_grad():
        ratio = cross_entropy(z, y) / (cross_entropy(t, y) + 1e-7)
        omega = -torch.expm1(-ratio)
    soft = -(F.softmax(t / tau, dim=-1) * F.log_softmax(z / tau, dim=-1)).sum(dim=-1)
    return omega * tau**2 * soft

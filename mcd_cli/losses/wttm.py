"""TTM and WTTM (Zheng & Yang, ICLR 2024): a temperature only for the target; no τ², and the student is not softened.

The paper writes the temperature as a power, γ = 1/τ: softmax(t/τ) ∝ softmax(t)^γ, with γ = 0.1 … 0.2. The student is
at temperature 1. Weights are tuned for each pair; the two that the authors print are 45 ttm (γ 0.1, vgg13 → vgg8) and
4 wttm (γ 0.2, beside CRD), each with ce.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mcd_cli.losses.probabilities import divergence


def ttm(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """ttm_ij = KL(softmax(t/τ) ‖ softmax(z)); ∂/∂z = softmax(z) − softmax(t/τ).

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels, not needed. Returns [n, …].
    """
    return divergence(F.log_softmax(t / tau, dim=-1), F.log_softmax(z, dim=-1))


def wttm(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """wttm_ij = w_i ttm_ij with w_i = Σ_c softmax(t)_c^γ, from 1 (a sure target) to C^(1−γ) (a uniform one).

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels, not needed. Returns [n, …].
    """
    w = (F.log_softmax(t, dim=-1) / tau).logsumexp(dim=-1).exp()
    return w * ttm(z, t, y, tau)

"""DKD (Zhao et al., CVPR 2022): kd in two parts, kd = tckd + (1 − b_T) nckd, each with its own weight.

b_T = softmax(t/τ)[y] and b_S = softmax(z/τ)[y] are the label's probabilities; p̂ and q̂ are softmax(t/τ) and
softmax(z/τ) among the other classes. The paper: ce + w (1 tckd + 8 nckd), τ = 4, w from 0 to 1 in 20 of 240 epochs;
6 instead of 8 for WRN-40-2 → WRN-16-2 and WRN-40-1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcd_cli.losses.probabilities import divergence, is_label, log_binary, log_softmax_among


def tckd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """tckd_ij = τ² [b_T log(b_T/b_S) + (1−b_T) log((1−b_T)/(1−b_S))]; ∂/∂z = τ(b_S − b_T)(e_y − q̂).

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels [n]. Returns [n, …].
    """
    return binary(z, is_label(z, y), t, is_label(t, y), tau)


def nckd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """nckd_ij = τ² Σ_{c≠y} p̂_c log(p̂_c/q̂_c); ∂/∂z = τ(q̂ − p̂), 0 at the label.

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels [n]. Returns [n, …].
    """
    return kd_among(z, t, ~is_label(t, y), tau)


def binary(z: Tensor, one_z: Tensor, t: Tensor, one_t: Tensor, tau: float) -> Tensor:
    """τ² KL((b_T, 1−b_T) ‖ (b_S, 1−b_S)), b the probability of the one class of each side's mask."""
    return tau**2 * divergence(log_binary(t / tau, one_t), log_binary(z / tau, one_z))


def kd_among(z: Tensor, t: Tensor, kept: Tensor, tau: float) -> Tensor:
    """kd among the classes of the mask [n, …, C]; 0 where it is empty."""
    some = kept.any(dim=-1)
    kept = kept | ~some[..., None]  # an empty mask becomes a full one, to avoid NaN; its value is not used
    log_q = log_softmax_among(z / tau, kept).masked_fill(~kept, 0)
    log_p = log_softmax_among(t / tau, kept)
    return tau**2 * torch.where(some, divergence(log_p, log_q), 0)

"""RLD (Sun et al., ICCV 2025): DKD that does not repeat the target's mistakes. It is DKD where the target is right.

The paper: ce + w (1 scd + 8 mcd), scd at temperature 1, mcd at 4, w from 0 to 1 in 20 of 240 epochs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mcd_cli.losses.dkd import binary, kd_among
from mcd_cli.losses.probabilities import is_label, pick


def scd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """scd_ij = τ² KL((b_T, 1−b_T) ‖ (b_S, 1−b_S)), b_T = max_c softmax(t/τ)_c, b_S = softmax(z/τ)[y].

    ∂/∂z = τ(b_S − b_T)(e_y − q̂), as for tckd. z: logits [n, …, C]; t: target logits [n, …, C]; y: labels [n]. Returns
    [n, …].
    """
    best = t.argmax(dim=-1, keepdim=True) == torch.arange(t.shape[-1], device=t.device)
    return binary(z, is_label(z, y), t, best, tau)


def mcd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """mcd_ij = kd_ij among the classes c with t_c < t_y; 0 where the target ranks the label last.

    ∂/∂z = τ(q̂ − p̂) there and 0 elsewhere. z: logits [n, …, C]; t: target logits [n, …, C]; y: labels [n]. Returns
    [n, …].
    """
    return kd_among(z, t, t < pick(t, is_label(t, y))[..., None], tau)

"""DIST (Huang et al., NeurIPS 2022): correlation with the target instead of equality.

p = softmax(t/τ), q = softmax(z/τ). The paper: ce + 2 inter + 2 intra, τ = 4 (CIFAR-100).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SMALLEST = 1e-8  # of a norm that is divided by


def inter(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """inter_ij = τ² (1 − ρ_ij), ρ_ij Pearson's correlation of q_ij and p_i over the classes.

    With a = q − mean q, b likewise, and hats for unit length: ∂/∂q = −τ² (b̂ − ρ â)/|a|. z: logits [n, …, C]; t: target
    logits [n, …, C]; y: labels, not needed. Returns [n, …].
    """
    a, _ = _unit(F.softmax(z / tau, dim=-1), dim=-1)
    b, _ = _unit(F.softmax(t / tau, dim=-1), dim=-1)
    return tau**2 * (1 - (a * b).sum(dim=-1))


def intra(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """intra_ij: what image i adds to L_j = τ² mean_c (1 − ρ_jc), ρ_jc Pearson's correlation over the n images.

    L_j couples the images, so ℓ_ij is its linearisation at q, in which all but q_ij is constant:

        ℓ_ij = τ² mean_c (1 − n â_ijc b̂_ic) + n Σ_c (q_ijc − sg q_ijc) ∂L_j/∂q_ijc
        ∂L_j/∂q_ijc = −(τ²/C) (b̂_ic − ρ_jc â_ijc)/|a_jc|

    with the first sum, â, b̂ and the slope constant, a = q − mean_i q, and hats for unit length over the images. Its
    mean over images is L_j, and with equal weights the gradient of the mean is L_j's. n is the number of images in the
    batch; with several processes, in one shard. z: logits [n, …, C]; t: target logits [n, …, C]; y: labels, not needed.
    Returns [n, …].
    """
    q = F.softmax(z / tau, dim=-1)
    with torch.no_grad():
        a, length = _unit(q, dim=0)
        b, _ = _unit(F.softmax(t / tau, dim=-1), dim=0)
        n, num_classes = q.shape[0], q.shape[-1]
        rho = (a * b).sum(dim=0)
        slope = -(tau**2) / num_classes * (b - rho * a) / length
        value = tau**2 * (1 - n * a * b).mean(dim=-1)
    return value + n * ((q - q.detach()) * slope).sum(dim=-1)


def _unit(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """x − mean x, scaled to unit length; and the length before."""
    x = x - x.mean(dim=dim, keepdim=True)
    length = torch.linalg.vector_norm(x, dim=dim, keepdim=True).clamp(min=SMALLEST)
    return x / length, length

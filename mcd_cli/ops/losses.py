"""The three losses of Eq. 5, with one value per instance; the caller applies weights and reduces."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(z: Tensor, y: Tensor) -> Tensor:
    """Label loss at temperature 1: ce_ij = H(y_i, z_ij).

    z: logits [n, k, C]; y: labels [n]. Returns [n, k].
    """
    labels = y[:, None].expand(z.shape[:2])
    return F.cross_entropy(z.flatten(0, 1), labels.flatten(), reduction="none").view(z.shape[:2])


def distillation(z: Tensor, targets: Tensor, tau: float) -> Tensor:
    """τ² KL(p_τ(t) ‖ p_τ(z)) against each target, summed over classes (Hinton et al. 2015; Eq. 1).

    z: logits [n, k, C]; targets: target logits [n, k or 1, g, C]. Returns [n, k, g].
    """
    log_q = F.log_softmax(z / tau, dim=-1)[:, :, None]
    log_p = F.log_softmax(targets / tau, dim=-1)
    # clamp: a target probability of exactly zero has log p = -inf and must add 0, not NaN
    return tau**2 * (log_p.exp() * (log_p.clamp(min=-1e4) - log_q)).sum(dim=-1)


def pooled(z: Tensor, y: Tensor) -> Tensor:
    """The Pooled Student's logits (Eq. 4): the maximum over students at the label, the minimum elsewhere.

    z: logits [n, k, C]; y: labels [n]. Returns a detached target [n, C].
    """
    z = z.detach()
    at_label = torch.arange(z.shape[-1], device=y.device) == y[:, None]  # F.one_hot would synchronise with the device
    return torch.where(at_label, z.amax(dim=1), z.amin(dim=1))


def instance_losses(z: Tensor, y: Tensor, targets: Tensor | None, tau: float) -> Tensor:
    """All losses ℓ_ijc of Eq. 5: c = 0 is the label loss, c ≥ 1 are the losses against the targets, in order.

    z: logits [n, k, C]; y: labels [n]; targets: target logits [n, k or 1, g, C] or None. Returns [n, k, 1 + g].
    """
    ce = cross_entropy(z, y)[:, :, None]
    return ce if targets is None else torch.cat([ce, distillation(z, targets, tau)], dim=-1)

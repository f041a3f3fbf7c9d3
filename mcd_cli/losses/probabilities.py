"""Building blocks of the losses: classes picked by a mask, log-probabilities that stay finite, their divergence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOWEST = -1e4  # stands for log 0 instead of −inf, because 0 · −inf is NaN


def is_label(x: Tensor, y: Tensor) -> Tensor:
    """Which class is the label. x: [n, …, C]; y: labels [n]. Returns bool [n, 1 …, C]."""
    classes = torch.arange(x.shape[-1], device=x.device)  # F.one_hot would synchronise with the device
    return classes == y.view(-1, *(1,) * (x.dim() - 1))


def pick(x: Tensor, one: Tensor) -> Tensor:
    """x at the one class that the mask holds: [n, …, C] → [n, …]."""
    return x.masked_fill(~one, 0).sum(dim=-1)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    """KL(p ‖ q) = Σ_c p_c (log p_c − log q_c), [n, …]. log_p: constants, −inf allowed; log_q: finite."""
    return (log_p.exp() * (log_p.clamp(min=LOWEST) - log_q)).sum(dim=-1)


def log_softmax_among(x: Tensor, kept: Tensor) -> Tensor:
    """Log-probabilities among the classes of the mask, −inf at all others; the mask may not be empty."""
    return F.log_softmax(x.masked_fill(~kept, -torch.inf), dim=-1)


def log_binary(x: Tensor, one: Tensor) -> Tensor:
    """(log b, log(1 − b)) with b = softmax(x) at the one class that the mask holds: [n, …, 2].

    log(1 − b) is the logarithm of the sum over the other classes: computed from b, it would be lost when b rounds to 1.
    """
    log_p = F.log_softmax(x, dim=-1)
    others = log_p.masked_fill(one, -torch.inf).logsumexp(dim=-1)
    return torch.stack([pick(log_p, one), others], dim=-1)

"""NormKD (Chi et al. 2023): the temperature of each image is in proportion to the spread of its logits."""

from __future__ import annotations

from torch import Tensor

from mcd_cli.losses.lskd import lskd


def normkd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """normkd_ij = a_T² KL(softmax(t/a_T) ‖ softmax(z/a_S)), a_T = τ std t, a_S = τ std z.

    Softmax does not change with a shift, so this is std(t)² · lskd_ij: standardised logits, weighted by the target's
    variance; its gradient is std(t)² times lskd's. The authors' code also differentiates a_S. Its weights: 0.1 ce +
    0.9 normkd, τ = 2. z: logits [n, …, C]; t: target logits [n, …, C]; y: labels, not needed. Returns [n, …].
    """
    return t.var(dim=-1) * lskd(z, t, y, tau)

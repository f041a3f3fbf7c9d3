"""Logit standardisation (Sun et al., CVPR 2024): the student follows the shape of the target's logits, not their scale.

z̃ = (z − mean z)/(std z + ε) over the classes, t̃ likewise. No loss of z̃ has a gradient along 1 or along z − mean z,
so the scale of the logits is left to the label loss: with its weight of 0.1, probabilities are badly calibrated.
"""

from __future__ import annotations

from torch import Tensor

from mcd_cli.losses import dkd
from mcd_cli.losses.kd import kd

EPSILON = 1e-7  # the authors'


def standardised(x: Tensor) -> Tensor:
    """x̃ = (x − mean x)/(std x + ε) over the last dimension, the standard deviation with C − 1."""
    return (x - x.mean(dim=-1, keepdim=True)) / (x.std(dim=-1, keepdim=True) + EPSILON)


def lskd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """lskd_ij = kd(z̃, t̃) at temperature τ; ∂/∂z = P g/std z with g = τ(q − p) and P the projection off 1 and z̃.

    z: logits [n, …, C]; t: target logits [n, …, C]; y: labels, not needed. Returns [n, …]. The paper: 0.1 ce + 9 lskd,
    τ = 2; its tables tune the 9 from 6 to 18 for each pair.
    """
    return kd(standardised(z), standardised(t), y, tau)


def tckd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """tckd(z̃, t̃) at temperature τ. DKD with standardised logits: ce + w (9 tckd + 72 nckd), τ = 2.

    That is what the authors' later code computes (both of DKD's weights times 9). Their first release sets the second
    weight to 9 × 9 and leaves τ at 4.
    """
    return dkd.tckd(standardised(z), standardised(t), y, tau)


def nckd(z: Tensor, t: Tensor, y: Tensor, tau: float) -> Tensor:
    """nckd(z̃, t̃) at temperature τ."""
    return dkd.nckd(standardised(z), standardised(t), y, tau)

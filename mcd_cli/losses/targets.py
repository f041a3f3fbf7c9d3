"""Targets computed from the students' own logits. They are constants: no gradient flows into them."""

from __future__ import annotations

import torch
from torch import Tensor

from mcd_cli.losses.probabilities import is_label


def pooled(z: Tensor, y: Tensor) -> Tensor:
    """The Pooled Student's logits (Eq. 4): the maximum over students at the label, the minimum elsewhere.

    z: logits [n, k, C]; y: labels [n]. Returns a detached target [n, C].
    """
    z = z.detach()
    best, worst = z.amax(dim=1), z.amin(dim=1)
    return torch.where(is_label(best, y), best, worst)


def next_larger(z: Tensor, z_teacher: Tensor) -> Tensor:
    """The logits of each student's next larger one, in the same step; for the largest student, the teacher's.

    z: logits [n, k, C], students by falling size; z_teacher: [n, C]. Returns a detached target [n, k, C].
    """
    return torch.cat([z_teacher[:, None], z[:, :-1].detach()], dim=1)

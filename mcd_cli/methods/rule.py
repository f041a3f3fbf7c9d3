"""Rule: a fixed rule in the place of C-NET, with the same information and no parameters."""

from __future__ import annotations

import torch
from torch import Tensor

from mcd_cli.methods.base import TEACHER, BatchContext
from mcd_cli.methods.kd import KD


class Rule(KD):
    """L_j = 1/n Σ_i α_i ce_ij + β_i kd_ij(z_T), α_i = total · softmax(z_iT)[y_i], β_i = total − α_i.

    The label's weight is the teacher's probability of it, so the teacher replaces labels that it finds wrong. A control
    that C-NET's instance weights must beat.
    """

    def weights(self, batch: BatchContext) -> Tensor:
        belief = batch.teachers[TEACHER].softmax(dim=-1)
        at_label = torch.arange(belief.shape[-1], device=belief.device) == batch.labels[:, None]
        alpha = (belief * at_label).sum(dim=-1)  # [n]
        return self.settings.total * torch.stack([alpha, 1 - alpha], dim=-1)[:, None]

"""MC-Distil: a coordinator weighs each image's losses for each student (Eq. 3 and 5)."""

from __future__ import annotations

import torch
from torch import Tensor

from mcd_cli.methods.base import TEACHER, BatchContext, Method, Stage
from mcd_cli.ops.losses import pooled


class MCDistilNoPS(Method):
    """L_j = 1/n Σ_i α_ij ce_ij + β_ij kd_ij(z_T), with (α, β) = g_φ(x)  (Eq. 3)."""

    losses: tuple[str, ...] = ("alpha", "beta")

    def targets(self, batch: BatchContext) -> Tensor:
        return batch.teachers[TEACHER][:, None, None]


class MCDistil(MCDistilNoPS):
    """L_j = 1/n Σ_i α_ij ce_ij + β_ij kd_ij(z_T) + γ_ij kd_ij(z_PS), with (α, β, γ) = g_φ(x)  (Eq. 5)."""

    losses: tuple[str, ...] = ("alpha", "beta", "gamma")

    def loss_names(self, stage: Stage) -> tuple[str, ...]:
        # one student pooled with itself has nothing to learn from itself
        return self.losses if len(stage.students) > 1 else MCDistilNoPS.losses

    def targets(self, batch: BatchContext) -> Tensor:
        z_teacher = batch.teachers[TEACHER]
        if batch.logits.shape[1] == 1:
            return super().targets(batch)
        z_pooled = pooled(batch.logits, batch.labels)  # Eq. 4
        return torch.stack([z_teacher, z_pooled], dim=1)[:, None]

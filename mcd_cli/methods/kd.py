"""KD (Hinton et al. 2015), Eq. 1: every student follows the teacher, independently of the others."""

from __future__ import annotations

from torch import Tensor

from mcd_cli.methods.base import TEACHER, BatchContext, Method, constants


class KD(Method):
    """L_j = total · 1/n Σ_i (1 − λ) ce_ij + λ kd_ij(z_T), with total = 1 (2 and 3: control (a))."""

    losses: tuple[str, ...] = ("alpha", "beta")

    def targets(self, batch: BatchContext) -> Tensor:
        return batch.teachers[TEACHER][:, None, None]

    def weights(self, batch: BatchContext) -> Tensor:
        lam, total = self.settings.lambda_, self.settings.total
        return constants(batch.logits, [total * (1 - lam), total * lam])

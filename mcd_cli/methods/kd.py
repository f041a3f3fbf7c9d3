"""KD (Hinton et al. 2015), Eq. 1: every student follows the teacher, each for itself."""

from __future__ import annotations

from torch import Tensor

from mcd_cli.methods.base import TEACHER, Method, Step


class KD(Method):
    """L_j = 1/n Σ_i (1 − λ) ce_ij + λ kd_ij(z_T)."""

    losses: tuple[str, ...] = ("alpha", "beta")

    def guides(self, step: Step) -> Tensor:
        return step.teachers[TEACHER][:, None, None]

    def weights(self, step: Step) -> Tensor:
        lam = self.settings.lambda_
        return step.logits.new_tensor([1 - lam, lam])

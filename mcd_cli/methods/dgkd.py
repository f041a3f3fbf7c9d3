"""DGKD (Son et al. 2021): densely guided, every student follows the teacher and all larger students."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcd_cli.methods.base import TEACHER, BatchContext, Method, Stage, constants


class DGKD(Method):
    """L_j = q(1 − λ) 1/n Σ_i ce_ij + λ Σ_t 1/n Σ_i kd_ij(z_t), over t ∈ {T, S₁ … S_{j−1}}, q of them.

    The larger students are distilled first, one after another by falling parameter count, and frozen at their
    best on val. `drop`: in every step each of them (never T) is left out with this probability, and q counts those
    kept. `normalise`: divided by q, so that the total weight is kd's.
    """

    def stages(self, students: Sequence[str]) -> list[Stage]:
        return [Stage((student,), (TEACHER, *students[:j])) for j, student in enumerate(students)]

    def loss_names(self, stage: Stage) -> tuple[str, ...]:
        return ("alpha", "beta", *(f"beta/{larger}" for larger in stage.teachers[1:]))

    def targets(self, batch: BatchContext) -> Tensor:
        return torch.stack(list(batch.teachers.values()), dim=1)[:, None]

    def weights(self, batch: BatchContext) -> Tensor:
        lam = self.settings.lambda_
        draws = torch.rand(len(batch.teachers) - 1, generator=batch.draw("drop"))
        kept = [True, *(draws >= self.settings.drop).tolist()]  # T first
        q = sum(kept)
        weights = [q * (1 - lam), *(lam * keep for keep in kept)]
        return constants(batch.logits, [w / q for w in weights] if self.settings.normalise else weights)

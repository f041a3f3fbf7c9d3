"""TAKD (Mirzadeh et al. 2020): a chain of teacher assistants, T → S₁ → S₂ → …"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mcd_cli.methods.base import TEACHER, BatchContext, Stage
from mcd_cli.methods.kd import KD


class TAKD(KD):
    """L_j = 1/n Σ_i (1 − λ) ce_ij + λ kd_ij(z_{j−1}), by falling parameter count, z_0 = z_T.

    z_{j−1} are the logits of the next larger student, distilled and frozen, at its best on val.
    """

    def stages(self, students: Sequence[str]) -> list[Stage]:
        above = [TEACHER, *students[:-1]]
        return [Stage((student,), (teacher,)) for student, teacher in zip(students, above, strict=True)]

    def targets(self, batch: BatchContext) -> Tensor:
        (z_above,) = batch.teachers.values()
        return z_above[:, None, None]

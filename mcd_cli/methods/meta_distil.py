"""Meta-Distil (after AMAL, Sivasubramanian et al. 2023): each student separately, with its own C-NET."""

from __future__ import annotations

from collections.abc import Sequence

from mcd_cli.methods.base import Stage
from mcd_cli.methods.mc_distil import MCDistilNoPS


class MetaDistil(MCDistilNoPS):
    """L_j = 1/n Σ_i α_i ce_ij + β_i kd_ij(z_T), with (α, β) = g_φj(x): Eq. 3 for one student at a time."""

    def stages(self, students: Sequence[str]) -> list[Stage]:
        return [Stage((student,)) for student in students]

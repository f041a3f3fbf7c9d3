"""MC-Distil: a coordinator weighs each image's losses for each student (Eq. 3 and 5)."""

from __future__ import annotations

from mcd_cli.losses import POOLED, Term, term
from mcd_cli.methods.bank import Bank


class MCDistilNoPS(Bank):
    """L_j = 1/n Σ_i α_ij ce_ij + β_ij kd_ij(z_T), with (α, β) = g_φ(x)  (Eq. 3).

    With `distill.losses`, those instead, and a weight for each: Σ_c w_ijc ℓ_ijc, with w = g_φ(x).
    """

    def terms(self) -> tuple[Term, ...]:
        return self.chosen() or self.equation(self.settings.tau)

    def equation(self, tau: float) -> tuple[Term, ...]:
        """The paper's losses."""
        return term("ce", name="alpha"), term("kd", tau=tau, name="beta")


class MCDistil(MCDistilNoPS):
    """L_j = 1/n Σ_i α_ij ce_ij + β_ij kd_ij(z_T) + γ_ij kd_ij(z_PS), with (α, β, γ) = g_φ(x)  (Eq. 5)."""

    def equation(self, tau: float) -> tuple[Term, ...]:
        return *super().equation(tau), term("kd", tau=tau, follows=POOLED, name="gamma")

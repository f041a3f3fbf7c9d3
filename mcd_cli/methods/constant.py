"""Control (b): the losses of MC-Distil with constant weights, so the pooled term without a C-NET."""

from __future__ import annotations

from torch import Tensor

from mcd_cli.losses import Term
from mcd_cli.methods.base import BatchContext, constants
from mcd_cli.methods.mc_distil import MCDistil


class Constant(MCDistil):
    """L_j = 1/n Σ_i α ce_ij + β kd_ij(z_T) + γ kd_ij(z_PS), with (α, β, γ) = `constants` for every image."""

    def terms(self) -> tuple[Term, ...]:
        return self.equation(self.settings.tau)

    def weights(self, batch: BatchContext) -> Tensor:
        return constants(batch.logits, self.settings.constants)

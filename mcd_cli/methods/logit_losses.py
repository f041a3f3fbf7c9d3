"""Papers whose method is a bank of losses of the teacher's logits, with their own constant weights.

The losses are in `mcd_cli/losses/`, with what each paper and its code say; weights, temperatures and ramps are the
rows' defaults. A larger sum of weights is a larger learning rate: `distill.total` multiplies the whole.
"""

from __future__ import annotations

from mcd_cli.losses import Term, term
from mcd_cli.methods.bank import ConstantBank


class DKD(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + w (tckd_ij + 8 nckd_ij), τ = 4, w from 0 to 1 over a twelfth (Zhao et al. 2022)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("tckd"), term("nckd")


class LSKD(ConstantBank):
    """L_j = 1/n Σ_i 0.1 ce_ij + 9 lskd_ij, τ = 2 (Sun et al. 2024)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce", weight=0.1), term("lskd")


class DKDLSKD(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + w (9 tckd_ij + 72 nckd_ij) of standardised logits, τ = 2, w as in DKD (Sun et al. 2024)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("lskd-tckd"), term("lskd-nckd")


class NKD(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + target_ij + 1.5 others_ij, τ = 1 (Yang et al. 2023)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("nkd-target"), term("nkd-others")


class WTTM(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + 4 wttm_ij, τ = 5 only for the teacher (Zheng & Yang 2024; weights tuned for each pair)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("wttm")


class DIST(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + 2 inter_ij + 2 intra_ij, τ = 4 (Huang et al. 2022)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("dist-inter"), term("dist-intra")


class RLD(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + w (scd_ij + 8 mcd_ij), τ = 1 and 4, w as in DKD (Sun et al. 2025)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("rld-scd"), term("rld-mcd")


class WSLD(ConstantBank):
    """L_j = 1/n Σ_i ce_ij + 2.5 wsld_ij, τ = 2 (Zhou et al. 2021)."""

    def terms(self) -> tuple[Term, ...]:
        return term("ce"), term("wsld")

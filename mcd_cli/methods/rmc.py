"""RMC (Du et al. 2023): the teacher is softened on images that the students find unequally hard."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcd_cli.losses.ce import cross_entropy
from mcd_cli.methods.base import TEACHER, BatchContext, PreparationData
from mcd_cli.methods.kd import KD

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


class RMC(KD):
    """L_j = 1/n Σ_i (1 − λ) ce_ij + λ kd_ij(d_i · z_T), d_i = α + (1 − α)(v_i − v_min)/(v_max − v_min).

    v_i is the variance over the warm-started students of their CE losses on the un-augmented image i, computed
    once. The paper's students differ in capacity, those of Du et al. in sparsity. `clip`: v is cut
    at its 99th percentile first, because outliers would decide the maximum.
    """

    def prepare(self, data: PreparationData) -> dict[str, Tensor]:
        v = cross_entropy(data.logits(), data.labels).double().var(dim=1)  # [N]
        if self.settings.clip:
            v = v.clamp(max=v.quantile(0.99))
        span = (v.max() - v.min()).clamp(min=torch.finfo(v.dtype).tiny)
        alpha = self.settings.alpha
        table = torch.full((data.num_images,), float("nan"))  # V and test have no difficulty
        table[data.ids] = (alpha + (1 - alpha) * (v - v.min()) / span).float()
        return {"difficulty": table}

    def targets(self, batch: BatchContext) -> Tensor:
        d = batch.tables["difficulty"][batch.ids]
        return (d[:, None] * batch.teachers[TEACHER])[:, None, None]

    def summary(self, tables: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
        d = tables["difficulty"].double().cpu()
        d = d[~d.isnan()]
        return {"difficulty": {f"{q:g}": d.quantile(q).item() for q in QUANTILES}}

"""CE: only the labels, for the same epochs as every other method (Table 1, column CE)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mcd_cli.methods.base import BatchContext, Method, Stage


class CE(Method):
    """L_j = 1/n Σ_i ce_ij."""

    def stages(self, students: Sequence[str]) -> list[Stage]:
        return [Stage(tuple(students), teachers=())]

    def weights(self, batch: BatchContext) -> Tensor:
        return batch.logits.new_ones(1)

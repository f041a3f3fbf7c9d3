"""Methods defined by a bank of losses. The subclasses say where the weights come from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mcd_cli.losses import LARGER, POOLED, TEACHER, Term, term
from mcd_cli.losses.targets import next_larger, pooled
from mcd_cli.methods.base import BatchContext, Method, Stage, constants


class Bank(Method):
    """L_j = 1/n Σ_i Σ_c w_ijc ℓ_ijc over the losses c of `terms`; this class leaves w to a C-NET."""

    def terms(self) -> tuple[Term, ...]:
        """The losses, if there are two students or more."""
        raise NotImplementedError

    def chosen(self) -> tuple[Term, ...] | None:
        """The losses that the recipe names, if any."""
        losses = self.settings.losses
        return None if losses is None else tuple(loss.term(self.settings.tau) for loss in losses)

    def bank(self, stage: Stage) -> tuple[Term, ...]:
        return self.of(len(stage.students))

    def loss_names(self, stage: Stage) -> tuple[str, ...]:
        return tuple(term.name for term in self.bank(stage))

    def targets(self, batch: BatchContext) -> Tensor | None:
        return followed(self.of(batch.logits.shape[1]), batch)

    def of(self, num_students: int) -> tuple[Term, ...]:
        """The losses for that many students: a single student has no pooled target."""
        return tuple(term for term in self.terms() if num_students > 1 or term.follows != POOLED)


class ConstantBank(Bank):
    """w_ijc = total · w_c: constant weights, those of the terms."""

    def weights(self, batch: BatchContext) -> Tensor:
        total = self.settings.total
        return constants(batch.logits, [total * term.weight for term in self.of(batch.logits.shape[1])])


class OwnBank(ConstantBank):
    """L_j = total · 1/n Σ_i Σ_c w_c ℓ_ijc over the losses c of the recipe's `distill.losses`; ce + kd without any."""

    def terms(self) -> tuple[Term, ...]:
        return self.chosen() or (term("ce"), term("kd", tau=self.settings.tau))


def followed(bank: Sequence[Term], batch: BatchContext) -> Tensor | None:
    """The logits that the bank's losses follow, [n, k or 1, g, C]; None if no loss follows any."""
    z, z_teacher = batch.logits, batch.teachers[TEACHER]
    made = {
        TEACHER: lambda: z_teacher[:, None],
        POOLED: lambda: pooled(z, batch.labels)[:, None],  # Eq. 4
        LARGER: lambda: next_larger(z, z_teacher),
    }
    targets = [made[term.follows]() for term in bank if term.follows]
    num_rows = max((target.shape[1] for target in targets), default=0)
    return torch.stack([target.expand(-1, num_rows, -1) for target in targets], dim=2) if targets else None

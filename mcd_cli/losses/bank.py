"""All losses of a bank at once, one value per image, student and loss; the caller weighs and reduces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from mcd_cli.losses import LOSSES, Term, term


def instance_losses(
    z: Tensor, y: Tensor, targets: Tensor | None, bank: Sequence[Term], progress: Tensor | None = None
) -> Tensor:
    """ℓ_ijc of every loss c of the bank, in its order. ℓ_ijc depends only on z_ij and on constants.

    z: logits [n, k, C]; y: labels [n]; targets: the logits that are followed, [n, k or 1, g, C], one for each loss that
    follows any; None if no loss does; progress: how much of the stage's training is done, in [0, 1], for ramps
    (None: all of it). Returns [n, k, c].
    """
    z = z[:, :, None]
    columns, taken = [], 0
    for (loss, tau), group in groupby(bank, key=lambda term: (term.loss, term.tau)):
        terms = list(group)
        t = z  # no loss has a target
        if LOSSES[loss].follows:
            assert targets is not None
            t = targets[:, :, taken : taken + len(terms)]
            taken += len(terms)
        values = LOSSES.load(loss)(z, t, y, tau)  # neighbours that differ only in their targets share one call
        if progress is not None and any(term.ramp for term in terms):
            values = values * torch.stack([ramp(term, progress) for term in terms])
        columns.append(values)
    return torch.cat(columns, dim=-1)


def ramp(term: Term, progress: Tensor) -> Tensor:
    """The factor by which a loss has grown: from 0 to 1 over the first `term.ramp` of the stage."""
    return (progress / term.ramp).clamp(max=1) if term.ramp else torch.ones_like(progress)


def label_and(num_targets: int, tau: float) -> tuple[Term, ...]:
    """The bank of Eq. 1 to 5: the label loss, and kd at temperature τ to each target."""
    return (term("ce"), *(term("kd", tau=tau) for _ in range(num_targets)))

"""EMA: an exponential moving average of the students' weights, beside the weights themselves."""

from __future__ import annotations

import copy

import torch

from mcd_cli.models.students import Students


class EMA:
    """θ̄ ← θ̄ + (1 − d_t)(θ − θ̄) after every step, d_t = min(decay, (1 + t)/(10 + t)), t the steps before it.

    θ̄ starts as θ; the warm-up of d is TensorFlow's and timm's. BatchNorm's running statistics are averaged like
    parameters, as timm does: to compute them anew would take a pass over train in every epoch. Counters are copied.
    """

    def __init__(self, students: Students, decay: float) -> None:
        """students: θ, on their device; they are read in place from then on."""
        self.decay = decay
        self.students = copy.deepcopy(students).requires_grad_(False)  # θ̄
        pairs = list(zip(self.students.state_dict().values(), students.state_dict().values(), strict=True))
        self.averages = [average for average, x in pairs if x.is_floating_point()]
        self.live = [x for _, x in pairs if x.is_floating_point()]
        self.counters = [pair for pair in pairs if not pair[1].is_floating_point()]
        self.share = torch.zeros((), device=self.live[0].device)  # 1 − d_t; a tensor, so that graph replays read it

    def at(self, step_index: int) -> float:
        """d_t of the step of that index."""
        return min(self.decay, (1 + step_index) / (10 + step_index))

    def set(self, step_index: int) -> None:
        """Set d for the next step."""
        self.share.fill_(1 - self.at(step_index))

    @torch.no_grad()
    def update(self) -> None:
        """Follow a step of θ, in place."""
        moves = torch._foreach_sub(self.live, self.averages)
        torch._foreach_mul_(moves, self.share)
        torch._foreach_add_(self.averages, moves)
        for average, counter in self.counters:
            average.copy_(counter)

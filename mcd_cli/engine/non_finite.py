"""One student's NaN reaches neither the others nor a saved state."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from mcd_cli.errors import RunFailed

PATIENCE = 1000  # steps after which a host that does not wait asks all the same


class NonFiniteGuard:
    """Whether every student's logits and losses are finite.

    The host waits in every step, before anything is moved; or, deferred, the device keeps the answer itself: from
    the first bad step on `found_inf` is 1, which the fused optimisers read (`found_inf`) and then move nothing, and the
    host is told when it asks (`refuse`), at an epoch's end and before anything is saved.
    """

    KINDS = ("logits", "loss")

    def __init__(self, students: tuple[str, ...], stage: str, device: torch.device, *, deferred: bool) -> None:
        self.students = students
        self.stage = stage
        self.deferred = deferred
        self.bad = torch.zeros(len(self.KINDS), len(students), dtype=torch.bool, device=device)
        self.found_inf = torch.zeros((), device=device)
        self.num_late = torch.zeros((), device=device)  # steps from the first bad one on, itself included

    def halt(self, optimizer: Optimizer) -> None:
        """Where deferred, this optimiser, a fused one, moves nothing from the first bad step on."""
        if self.deferred:
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]

    def tensors(self) -> list[Tensor]:
        return [self.bad, self.found_inf, self.num_late]

    @torch.no_grad()
    def check(self, step_index: int, logits: Tensor, loss: Tensor) -> None:
        """logits and loss: [n, k, …] of the step of that step_index. Raises RunFailed (later, where deferred)."""
        fine = torch.stack([torch.isfinite(v).all(dim=2).all(dim=0) for v in (logits, loss)])
        if not self.deferred:
            if not fine.all():
                self._raise(~fine, step_index)
            return
        self.bad |= ~fine & (self.found_inf == 0)
        self.found_inf.copy_(self.bad.any())
        self.num_late += self.found_inf

    def refuse(self, num_steps: int) -> None:
        """After so many steps. Raises RunFailed that names the students and the step; the host waits."""
        if self.deferred and self.found_inf:
            self._raise(self.bad, num_steps - int(self.num_late))

    def _raise(self, bad: Tensor, step_index: int) -> None:
        what, of_students = next((what, b) for what, b in zip(self.KINDS, bad.tolist(), strict=True) if any(b))
        names = [name for name, is_bad in zip(self.students, of_students, strict=True) if is_bad]
        raise RunFailed(
            f"the {what} of {' and '.join(names)} is not finite at step {step_index} of stage {self.stage}; "
            "what was saved before stays; try a lower learning rate (--set optimizer.lr=…, warm_start.lr=…)"
        )

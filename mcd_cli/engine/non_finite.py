"""Stops a student's NaN before it reaches other students or a checkpoint."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from mcd_cli.errors import RunFailed

PATIENCE = 1000  # steps between two checks by a host that does not wait for the device


class NonFiniteGuard:
    """Checks that every student's logits and losses are finite.

    Normally the host waits for the check in every step, before the optimisers update anything. If deferred, the
    result stays on the device: from the first bad step on, `found_inf` is 1, and the fused optimisers, which read it,
    skip their updates. The host then calls `refuse` at the end of an epoch and before anything is saved.
    """

    KINDS = ("logits", "loss")

    def __init__(self, students: tuple[str, ...], stage: str, device: torch.device, *, deferred: bool) -> None:
        self.students = students
        self.stage = stage
        self.deferred = deferred
        self.bad = torch.zeros(len(self.KINDS), len(students), dtype=torch.bool, device=device)
        self.found_inf = torch.zeros((), device=device)
        self.num_late = torch.zeros((), device=device)  # steps since the first bad one, including it

    def halt(self, optimizer: Optimizer) -> None:
        """If deferred: let this optimiser, a fused one, change nothing from the first bad step on."""
        if self.deferred:
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]

    def tensors(self) -> list[Tensor]:
        return [self.bad, self.found_inf, self.num_late]

    @torch.no_grad()
    def check(self, step_index: int, logits: Tensor, loss: Tensor) -> None:
        """Check one step's logits and losses, [n, k, …]. Raises RunFailed, unless deferred."""
        fine = torch.stack([torch.isfinite(v).all(dim=2).all(dim=0) for v in (logits, loss)])
        if not self.deferred:
            if not fine.all():
                self._raise(~fine, step_index)
            return
        self.bad |= ~fine & (self.found_inf == 0)
        self.found_inf.copy_(self.bad.any())
        self.num_late += self.found_inf

    def refuse(self, num_steps: int) -> None:
        """Raises RunFailed if a deferred check has failed in the `num_steps` steps so far; the host waits."""
        if self.deferred and self.found_inf:
            self._raise(self.bad, num_steps - int(self.num_late))

    def _raise(self, bad: Tensor, step_index: int) -> None:
        kind, flags = next((kind, b) for kind, b in zip(self.KINDS, bad.tolist(), strict=True) if any(b))
        names = [name for name, is_bad in zip(self.students, flags, strict=True) if is_bad]
        raise RunFailed(
            f"the {kind} of {' and '.join(names)} {'are' if kind == 'logits' else 'is'} not finite "
            f"at step {step_index} of stage {self.stage}; "
            "try a lower learning rate (--set optimizer.lr=…, warm_start.lr=…); earlier checkpoints are intact"
        )

"""Sums the metrics of an epoch on the device and reads them once at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mcd_cli.engine.checkpoint import put_all
from mcd_cli.ladder.metrics import StudentRecord


def sums_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums over many steps: float64, except on Apple GPUs, which lack it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Meters:
    """Sums over an epoch's batches per student and loss, [k, c]; part of the state, so that resuming keeps them.

    losses, weights: means over images; spread: standard deviation of the weights over a batch, averaged over batches;
    saturated: share of C-NET's outputs within 2 % of 0 or 1.
    """

    NAMES = ("losses", "weights", "spread", "saturated", "correct")

    def __init__(self, num_students: int, num_losses: int, device: torch.device) -> None:
        shapes = dict.fromkeys(self.NAMES, (num_students, num_losses)) | {"correct": (num_students, 1)}
        self.dtype = sums_dtype(device)
        self.sums = {name: torch.zeros(s, dtype=self.dtype, device=device) for name, s in shapes.items()}
        self.count = torch.zeros((), dtype=self.dtype, device=device)

    @torch.no_grad()
    def add(self, right: Tensor, losses: Tensor, w: Tensor) -> None:
        """Add a step.

        right: 1 for a correct prediction, [n, k]; losses, w: [n, k, c]. All for the whole batch, so that
        every process has the same sums.
        """
        self.sums["losses"] += losses.mean(dim=0)
        self.sums["weights"] += w.mean(dim=0)
        self.sums["correct"] += right.mean(dim=0)[:, None]
        self.count += 1

    @torch.no_grad()
    def add_outputs(self, p: Tensor, w: Tensor) -> None:
        """C-NET's outputs of the whole batch, and the weights they became: both [n, k, c]."""
        self.sums["spread"] += w.std(dim=0, correction=0)
        self.sums["saturated"] += ((p < 0.02) | (p > 0.98)).to(self.dtype).mean(dim=0)

    def reset(self) -> None:
        for tensor in self.state_dict().values():
            tensor.zero_()

    def state_dict(self) -> dict[str, Tensor]:
        return {**self.sums, "count": self.count}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        put_all(self.state_dict(), state)

    def summary(
        self, students: tuple[str, ...], loss_names: tuple[str, ...], learned: bool, val_accuracy: Sequence[float]
    ) -> dict[str, StudentRecord]:
        """The epoch's means per student; val_accuracy: the students' accuracies, in the same order."""
        mean = {name: (total / self.count).cpu() for name, total in self.sums.items()}

        def by_loss(name: str, j: int) -> dict[str, float]:
            return dict(zip(loss_names, mean[name][j].tolist(), strict=True))

        return {
            student: StudentRecord(
                train_accuracy=mean["correct"][j, 0].item(),
                losses=by_loss("losses", j),
                weights=by_loss("weights", j),
                total_weight=mean["weights"][j].sum().item(),
                spread=by_loss("spread", j) if learned else None,
                saturated=by_loss("saturated", j) if learned else None,
                val_accuracy=accuracy,
            )
            for j, (student, accuracy) in enumerate(zip(students, val_accuracy, strict=True))
        }

"""Sums the metrics of an epoch on the device and reads them once at the end."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mcd_cli.engine.checkpoint import put_all


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

    def summary(self, students: tuple[str, ...], loss_names: tuple[str, ...], learned: bool) -> dict[str, Any]:
        """The epoch's means per student: training accuracy, losses and weights by loss, total weight."""
        mean = {name: (total / self.count).cpu() for name, total in self.sums.items()}
        by_student = {}
        for j, student in enumerate(students):
            entry: dict[str, Any] = {
                "train_accuracy": mean["correct"][j, 0].item(),
                "losses": dict(zip(loss_names, mean["losses"][j].tolist(), strict=True)),
                "weights": dict(zip(loss_names, mean["weights"][j].tolist(), strict=True)),
                "total_weight": mean["weights"][j].sum().item(),
            }
            if learned:
                entry["spread"] = dict(zip(loss_names, mean["spread"][j].tolist(), strict=True))
                entry["saturated"] = dict(zip(loss_names, mean["saturated"][j].tolist(), strict=True))
            by_student[student] = entry
        return by_student

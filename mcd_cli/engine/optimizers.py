"""The optimisers of students and C-NET (torch's own, without the wrappers that import its compiler), and η."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mcd_cli.ops import meta_gradient
from mcd_cli.recipe.schema import CoordinatorSection

StepSizes = Sequence[float | Tensor]
"""c_j of one step for each student, see ops/meta_gradient.py."""


def uncompiled(kind: type[Optimizer]) -> type[Optimizer]:
    """`kind` without its wrappers, which import torch.compile (2 s at every start) only to be excluded from it."""
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})


def students_optimizer(networks: Iterable[nn.Module], sgd: Iterable[Mapping[str, Any]]) -> Optimizer:
    """One SGD for the ladder, a group for each student; sgd: each one's lr, momentum, weight_decay, nesterov."""
    groups = [{"params": list(n.parameters()), **own} for n, own in zip(networks, sgd, strict=True)]
    return uncompiled(torch.optim.SGD)(groups, fused=True)  # type: ignore[call-arg]


def coordinator_optimizer(coordinator: nn.Module, section: CoordinatorSection, capturable: bool) -> Optimizer:
    """AdamW with decay on matrices only, or the paper's literal Adam with an L2 term (A.3)."""
    how: dict[str, Any] = {"lr": section.lr, "fused": True, "capturable": capturable}
    parameters = list(coordinator.parameters())
    if section.optimizer == "adam":
        return uncompiled(torch.optim.Adam)(parameters, weight_decay=section.weight_decay, **how)  # type: ignore[call-arg]
    matrices = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": section.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return uncompiled(torch.optim.AdamW)([group for group in groups if group["params"]], **how)  # type: ignore[call-arg]


class LearningRate:
    """η of the students' optimiser, a function of the step: cosine annealing per step to 0 (A.3), or constant.

    start: the run's η at the first step; each group starts at its own. device: keep η in tensors there, so that graph
    replays read the current values; None: η is a Python float.
    """

    def __init__(
        self, optimizer: Optimizer, start: float, schedule: str, num_steps: int, device: torch.device | None
    ) -> None:
        self.groups = optimizer.param_groups
        self.start = start
        self.starts = [group["lr"] for group in self.groups]
        self.schedule = schedule
        self.num_steps = num_steps
        self.tensors = {} if device is None else {own: torch.zeros((), device=device) for own in self.starts}

    def at(self, step_index: int, start: float | None = None) -> float:
        """η at a step. start: η at the first one; None: the run's."""
        start = self.start if start is None else start
        if self.schedule == "cosine":
            return start * (0.5 * (1 + math.cos(math.pi * step_index / self.num_steps)))
        return start

    def set(self, step_index: int) -> None:
        """Set η for the next step."""
        for group, start in zip(self.groups, self.starts, strict=True):
            group["lr"] = self.tensors[start] if self.tensors else self.at(step_index, start)
        for start, eta in self.tensors.items():
            eta.fill_(self.at(step_index, start))


def step_sizes(sgd: Optimizer) -> StepSizes:
    """c_j of SGD's next step."""

    def has_buffer(group: Mapping[str, Any]) -> bool:
        return sgd.state.get(group["params"][0], {}).get("momentum_buffer") is not None

    return [meta_gradient.step_size(group, has_buffer(group)) for group in sgd.param_groups]


def gradients(module: nn.Module) -> list[Tensor]:
    """The gradients of all parameters that have one."""
    return [p.grad for p in module.parameters() if p.grad is not None]

"""The optimisers of students and C-NET: torch's own, without the wrappers that import its compiler."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from mcd_cli.recipe.schema import CoordinatorSection


def uncompiled(kind: type[Optimizer]) -> type[Optimizer]:
    """`kind` without its wrappers, which import all of torch.compile (2 s at every start) to be left alone by it."""
    plain = {name: inspect.unwrap(getattr(kind, name)) for name in ("add_param_group", "zero_grad", "step")}
    return type(kind.__name__, (kind,), plain | {"step": torch.no_grad()(plain["step"])})


def students_optimizer(networks: Iterable[nn.Module], sgd: Mapping[str, Any]) -> Optimizer:
    """One SGD for the ladder, a group for each student; sgd: lr, momentum, weight_decay, nesterov."""
    return uncompiled(torch.optim.SGD)([{"params": list(n.parameters())} for n in networks], fused=True, **sgd)  # type: ignore[call-arg]


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

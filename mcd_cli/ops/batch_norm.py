"""Train-mode BatchNorm with two features that torch lacks: fast forward-mode AD, and statistics over all processes.

Both override F.batch_norm; modules and weights stay unchanged.
Per channel, with m values, x̂ = (x − mean)/σ and y = γ x̂ + β, the Jacobian J = γ σ⁻¹ (I − 11ᵀ/m − x̂ x̂ᵀ/m) is
symmetric, so the backward pass and the forward-mode derivative along x are the same computation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd_cli.ops.distributed import Processes
from mcd_cli.ops.overrides import Override

TrainMode = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, float, float], Tensor]
"""x, running mean, running variance, weight, bias, momentum, eps → y; the running statistics are updated in place."""


def in_train_mode(compute: TrainMode) -> dict[Override, Override]:
    """An override of F.batch_norm that calls `compute` in train mode and torch's own function in eval mode."""

    def batch_norm(
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        return compute(input, running_mean, running_var, weight, bias, momentum, eps)

    return {F.batch_norm: batch_norm}


def _native(
    x: Tensor, _mean: Any, _var: Any, weight: Tensor | None, bias: Tensor | None, _: float, eps: float
) -> Tensor:
    return _Native.apply(x, weight, bias, eps)[0]  # type: ignore[no-any-return, no-untyped-call]


FORWARD_MODE = in_train_mode(_native)
"""Makes a JVP through train-mode BatchNorm take two native passes instead of a dozen; buffers are not updated.

torch's own rule takes half of the JVP's time on a CPU.
"""


def synced(processes: Processes) -> dict[Override, Override]:
    """Makes train-mode BatchNorm compute its statistics over the shards of all processes (--sync-bn).

    N processes then compute the same as one process with the whole batch. Supports forward mode for the meta step.
    """
    return in_train_mode(partial(_over_processes, processes))


def _over_processes(
    processes: Processes,
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    y: Tensor = _Synced.apply(x, running_mean, running_var, momentum, eps, processes)[0]  # type: ignore[no-untyped-call]
    if weight is not None:
        y = y * weight.view(_channels(x))
    if bias is not None:
        y = y + bias.view(_channels(x))
    return y


class _Native(torch.autograd.Function):
    """Forward mode from torch's own kernels: ẏ = J ẋ (the native backward pass) + γ̇ x̂ + β̇ (the eval-mode pass)."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, inverse_std = output
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, weight, mean, inverse_std)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None, None]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        x_dot, weight_dot, bias_dot, _ = tangents
        y_dot = None
        if weight_dot is not None or bias_dot is not None:
            variance = inverse_std**-2 - ctx.eps
            y_dot = F.batch_norm(x, mean, variance, weight_dot, bias_dot, False, 0.0, ctx.eps)
        if x_dot is not None:
            along_x = torch.ops.aten.native_batch_norm_backward(
                x_dot, x, weight, None, None, mean, inverse_std, True, ctx.eps, [True, False, False]
            )[0]
            y_dot = along_x if y_dot is None else y_dot.add_(along_x)
        return y_dot, None, None


class _Synced(torch.autograd.Function):
    """x̂ with statistics over all processes, in float32 or wider. Running statistics are updated as in torch."""

    @staticmethod
    def forward(
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
        processes: Processes,
    ) -> tuple[Tensor, Tensor, Tensor]:
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        dims, shape = _all_but_channels(x), _channels(x)
        count = x.new_full((x.shape[1],), x.numel() / x.shape[1])
        m, first = processes.all_reduce(torch.stack([count, x.sum(dims)]))
        mean = first / m
        variance = processes.all_reduce((x - mean.view(shape)).square().sum(dims)) / m
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * m / (m - 1), momentum)
        inverse_std = (variance + eps).rsqrt()
        return (x - mean.view(shape)) * inverse_std.view(shape), inverse_std, m

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.dtype, ctx.processes = inputs[0].dtype, inputs[-1]
        normalised, inverse_std, m = output
        ctx.mark_non_differentiable(inverse_std, m)
        ctx.save_for_backward(normalised, inverse_std, m)
        ctx.save_for_forward(normalised, inverse_std, m)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return _along(ctx, gradients[0]).to(ctx.dtype), None, None, None, None, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _along(ctx, tangents[0]), None, None


def _along(ctx: Any, direction: Tensor) -> Tensor:
    """σ⁻¹ (I − 11ᵀ/m − x̂ x̂ᵀ/m) · direction, summed over all processes."""
    normalised, inverse_std, m = ctx.saved_tensors
    dims, shape = _all_but_channels(normalised), _channels(normalised)
    sums = torch.stack([direction.sum(dims), (direction * normalised).sum(dims)])
    mean, mean_along = ctx.processes.all_reduce(sums) / m
    along: Tensor = (direction - mean.view(shape) - normalised * mean_along.view(shape)) * inverse_std.view(shape)
    return along


def _channels(x: Tensor) -> tuple[int, ...]:
    return (1, -1, *[1] * (x.ndim - 2))


def _all_but_channels(x: Tensor) -> list[int]:
    return [0, *range(2, x.ndim)]

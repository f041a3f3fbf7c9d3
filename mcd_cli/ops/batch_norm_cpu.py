"""Fast train-mode BatchNorm on a CPU for layers with few channels: several pixels are processed side by side."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mcd_cli.ops.batch_norm import in_train_mode

COLUMNS = 128  # numbers processed side by side
MOST_CHANNELS = 16  # with more channels, torch's kernels are as fast
FEWEST_NUMBERS = 2**19  # for smaller tensors, a dozen extra operators cost more than they save


def _side_by_side(x: Tensor) -> int:
    """How many pixels to place side by side so that their channels fill COLUMNS; 0 means: use torch's kernel."""
    narrow = x.ndim == 4 and x.shape[1] <= MOST_CHANNELS and x.numel() >= FEWEST_NUMBERS
    if not narrow or not x.is_contiguous(memory_format=torch.channels_last):
        return 0
    pixels = 1 << (COLUMNS // x.shape[1] - 1).bit_length()  # a power of two, which divides most images' areas
    return pixels if (x.numel() // x.shape[1]) % pixels == 0 else 0


def _train_mode(
    x: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    momentum: float,
    eps: float,
) -> Tensor:
    if x.device.type != "cpu" or x.dtype.itemsize < 4 or weight is None or bias is None or not _side_by_side(x):
        return F.batch_norm(x, running_mean, running_var, weight, bias, True, momentum, eps)
    y, mean, variance = _SideBySide.apply(x, weight, bias, eps)  # type: ignore[no-untyped-call]
    if running_mean is not None and running_var is not None:
        m = x.numel() // x.shape[1]
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(variance * (m / (m - 1)), momentum)
    return y  # type: ignore[no-any-return]


NARROW = in_train_mode(_train_mode)
"""Override for channels-last BatchNorm over few channels on a CPU.

torch's kernels iterate over the channels of one pixel: too few numbers to fill a vector register, and the partial
sums of neighbouring threads share a cache line. Forward and backward of 400x8x32x32 in float32 take 10 ms with one
thread and 39 ms with two; with pixels side by side they take 6 and 3 (torch 2.15, AVX2).
"""


class _SideBySide(torch.autograd.Function):
    """Views x [n, c, h, w], channels-last, as a matrix with `pixels` columns per channel and combines their statistics.

    The sums and the two linear maps use torch's own eval-mode kernels.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        statistics = torch.batch_norm_update_stats(_rows(x), None, None, 0.0)
        means, variances = (t.view(_side_by_side(x), -1) for t in statistics)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        return _affine(x, mean, variance, weight, bias, eps), mean, variance

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, variance = output
        ctx.mark_non_differentiable(mean, variance)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.save_for_forward(x, weight, mean, variance)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor | None, Tensor, Tensor, None]:
        direction = gradients[0].contiguous(memory_format=torch.channels_last)
        sums = _SideBySide._sums(ctx, direction)
        return _SideBySide._along(ctx, direction, *sums) if ctx.needs_input_grad[0] else None, *sums, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None, None]:
        x, weight, mean, variance = ctx.saved_tensors
        x_dot, weight_dot, bias_dot, _ = tangents
        zeros = torch.zeros_like(weight)
        slope, shift = (zeros if dot is None else dot for dot in (weight_dot, bias_dot))
        y_dot = _affine(x, mean, variance, slope, shift, ctx.eps)
        if x_dot is not None:
            direction = x_dot.contiguous(memory_format=torch.channels_last)
            y_dot += _SideBySide._along(ctx, direction, *_SideBySide._sums(ctx, direction))
        return y_dot, None, None

    @staticmethod
    def _sums(ctx: Any, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Σ direction · x̂ and Σ direction, over the m pixels."""
        x, _, mean, variance = ctx.saved_tensors
        pixels = _side_by_side(x)
        columns = torch.stack([torch.ones_like(mean), mean, variance]).repeat(1, pixels)
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            _rows(direction), _rows(x), *columns, None, None, False, ctx.eps, [False, True, True]
        )
        along_x, total = (t.view(pixels, -1).sum(0) for t in sums)
        return along_x, total

    @staticmethod
    def _along(ctx: Any, direction: Tensor, along_x: Tensor, total: Tensor) -> Tensor:
        """J · direction = γ σ⁻¹ (direction − x̂ Σ(direction · x̂)/m − Σ direction/m)."""
        x, weight, mean, variance = ctx.saved_tensors
        slope = weight * (variance + ctx.eps).rsqrt()
        scale = -slope / (x.numel() // x.shape[1])
        along = _affine(x, mean, variance, scale * along_x, scale * total, ctx.eps)
        _rows(along).addcmul_(_rows(direction), slope.repeat(_side_by_side(x)))
        return along


def _rows(x: Tensor) -> Tensor:
    """The same memory as a matrix: each row holds the channels of several pixels side by side."""
    return x.permute(0, 2, 3, 1).view(-1, _side_by_side(x) * x.shape[1])


def _affine(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """weight · x̂ + bias in new memory, so that a ReLU may work in place."""
    y, statistics = torch.empty_like(x), [x.new_empty(0), x.new_empty(0)]
    columns = torch.stack([weight, bias, mean, variance]).repeat(1, _side_by_side(x))
    torch.ops.aten.native_batch_norm.out(
        _rows(x), *columns, False, 0.0, eps, out=_rows(y), save_mean=statistics[0], save_invstd=statistics[1]
    )
    return y

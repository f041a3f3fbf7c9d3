"""The BatchNorm for narrow layers on a CPU gives torch's own numbers."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from mcd_cli.ops.batch_norm import FORWARD_MODE
from mcd_cli.ops.batch_norm_cpu import NARROW, _side_by_side
from mcd_cli.ops.overrides import Overrides

EPS = 1e-5


def inputs(channels: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """x (large enough, channels-last), weight and bias, and a direction for each of them."""
    generator = torch.Generator().manual_seed(channels)
    x = 3 * torch.randn(128, channels, 32, 32, generator=generator, dtype=dtype) + 5
    shapes = [x.shape, (channels,), (channels,)]
    directions = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    return [x.contiguous(memory_format=torch.channels_last), *directions[1:], *directions]


def torchs_own() -> AbstractContextManager[object]:
    return nullcontext()


@pytest.mark.parametrize("channels", [4, 6, 8, 16])
def test_backward_and_running_statistics(channels: int) -> None:
    found = []
    for mode in (torchs_own(), Overrides(NARROW)):
        x, weight, bias, direction, *_ = inputs(channels)
        assert _side_by_side(x)
        leaves = [t.requires_grad_() for t in (x, weight, bias)]
        mean, variance = torch.zeros_like(weight.detach()), torch.ones_like(bias.detach())
        with mode:
            y = F.batch_norm(x, mean, variance, weight, bias, True, 0.1, EPS)
        found.append([y, mean, variance, *torch.autograd.grad(F.relu(y, inplace=True), leaves, direction)])
        assert y.is_contiguous(memory_format=torch.channels_last)
    for expected, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("channels", [4, 16])
@pytest.mark.parametrize("moves", [(True, True, True), (True, False, False), (False, True, False)])
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
def test_forward_mode(channels: int, moves: tuple[bool, ...]) -> None:
    """Against torch's own derivative, with the quick pass inside the one of the meta step or alone."""
    values = inputs(channels)
    tangents = []
    for mode in (nullcontext(), Overrides(NARROW), Overrides(FORWARD_MODE)):
        with torch.no_grad(), forward_ad.dual_level(), mode, Overrides(NARROW) if mode else nullcontext():
            pairs = zip(values[:3], values[3:], moves, strict=True)
            x, weight, bias = (forward_ad.make_dual(v, d) if moved else v for v, d, moved in pairs)
            y = F.batch_norm(x, None, None, weight, bias, True, 0.1, EPS)
            tangents.append(forward_ad.unpack_dual(y).tangent)
    for ours in tangents[1:]:
        torch.testing.assert_close(ours, tangents[0], rtol=1e-9, atol=1e-9)


def test_float32_is_no_worse_than_torchs_own() -> None:
    x, weight, bias, *_ = inputs(8)
    exact = F.batch_norm(x, None, None, weight, bias, True, 0.0, EPS)
    error = {}
    for mode in (torchs_own(), Overrides(NARROW)):
        with mode:
            y = F.batch_norm(x.float(), None, None, weight.float(), bias.float(), True, 0.0, EPS)
        error[type(mode)] = float((y - exact).abs().max())
    assert error[Overrides] <= max(2 * error[nullcontext], 1e-6)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(128, 8, 32, 32),  # row-major
        torch.zeros(128, 32, 32, 32).contiguous(memory_format=torch.channels_last),  # wide
        torch.zeros(2, 8, 4, 4).contiguous(memory_format=torch.channels_last),  # small
        torch.zeros(65537, 8, 1, 1).contiguous(memory_format=torch.channels_last),  # no whole number of rows
    ],
)
def test_elsewhere_it_is_torchs_kernel(x: Tensor) -> None:
    assert not _side_by_side(x)
    norm = nn.BatchNorm2d(x.shape[1])
    with Overrides(NARROW):
        y = norm(x.requires_grad_())
    assert y.grad_fn.name() == "NativeBatchNormBackward0"

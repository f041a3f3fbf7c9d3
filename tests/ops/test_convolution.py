"""Strided 1×1 convolutions in two steps: torch's own numbers, without torch's strided kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

from mcd_cli.models import ARCHITECTURES, build
from mcd_cli.ops.convolution import UNSTRIDED
from mcd_cli.ops.overrides import Overrides
from support.operators import StridedKernels

# torch's own forward-mode rules use the compiler that newer torch deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script. is")
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def derivatives(
    convolve: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, bias: Tensor
) -> list[Tensor]:
    """The output, its gradients along a fixed direction, and its forward-mode derivative."""
    generator = torch.Generator().manual_seed(1)

    def direction(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=t.dtype)

    leaves = [t.clone().requires_grad_() for t in (x, weight, bias)]
    y = convolve(*leaves)
    gradients = torch.autograd.grad(y, leaves, direction(y))
    with torch.no_grad(), forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.detach(), direction(t)) for t in leaves]
        tangent = forward_ad.unpack_dual(convolve(*duals)).tangent
    return [y.detach(), *gradients, tangent]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [2, 3, (1, 2), (2, 1)])
@pytest.mark.parametrize("padding", [0, 1, (2, 1)])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_a_convolution_is_torchs(layout: torch.memory_format, stride: Any, padding: Any, groups: int) -> None:
    """In float64, which oneDNN does not compute."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 9, 8, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(8, 4 // groups, 1, 1, generator=generator, dtype=torch.float64)
    bias = torch.randn(8, generator=generator, dtype=torch.float64)

    def convolve(*leaves: Tensor) -> Tensor:
        return F.conv2d(*leaves, stride=stride, padding=padding, groups=groups)

    expected = derivatives(convolve, x, weight, bias)
    with Overrides(UNSTRIDED), StridedKernels() as seen:
        found = derivatives(convolve, x, weight, bias)
    assert not seen.shapes
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", [2, 3, (1, 2)])
@pytest.mark.parametrize(("padding", "output_padding"), [(0, 0), (0, (0, 1)), (1, 0)])
@pytest.mark.parametrize("groups", [1, 2])
def test_a_transposed_convolution_is_torchs(
    layout: torch.memory_format, stride: Any, padding: int, output_padding: Any, groups: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(4, 6 // groups, 1, 1, generator=generator, dtype=torch.float64)
    bias = torch.randn(6, generator=generator, dtype=torch.float64)

    def convolve(*leaves: Tensor) -> Tensor:
        return F.conv_transpose2d(*leaves, stride=stride, padding=padding, output_padding=output_padding, groups=groups)

    expected = derivatives(convolve, x, weight, bias)
    with Overrides(UNSTRIDED), StridedKernels() as seen:
        found = derivatives(convolve, x, weight, bias)
    assert not seen.shapes
    for ours, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, exact, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 8, 1),
        nn.Conv2d(4, 8, 3, stride=2),
        nn.Conv2d(4, 8, (1, 3), stride=2),
        nn.Conv2d(4, 8, 1, padding="same"),
        nn.ConvTranspose2d(4, 8, 3, stride=2),
    ],
)
def test_others_are_left_to_torch(convolution: nn.Module) -> None:
    x = torch.randn(2, 4, 9, 9)
    expected = convolution(x)
    with Overrides(UNSTRIDED):
        assert torch.equal(convolution(x), expected)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_no_architecture_reaches_the_kernel(arch: str) -> None:
    network = build(arch, 10).eval()
    x = torch.randn(1, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    with torch.no_grad(), Overrides(UNSTRIDED), StridedKernels() as seen:
        network(x)
    assert not seen.shapes


def test_the_collector_sees_them() -> None:
    with torch.no_grad(), StridedKernels() as seen:
        build("resnet10-xxs", 10).eval()(torch.randn(1, 3, 32, 32))
    assert seen.shapes == [(8, 8, 1, 1), (16, 8, 1, 1), (16, 16, 1, 1)]

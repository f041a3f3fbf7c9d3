"""Strided 1×1 convolutions that avoid oneDNN's kernel, which writes outside its memory.

oneDNN's gradient with respect to the input of a strided 1×1 convolution (brgconv_strided, AVX-512) overwrites the heap
if the input is channels-last and has fewer than 16 channels; benchmarks/convolutions.py reproduces it. A transposed
convolution runs the same kernel in its forward pass. The replacements below compute the same sums in two steps. They
apply to any number of channels, because the kernel that oneDNN picks depends on the processor and our results should
not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd_cli.ops.overrides import Override

Size = int | tuple[int, int]


def conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Tensor:
    """torch.conv2d, with a strided 1×1 convolution split into subsampling and a 1×1 convolution of stride 1."""
    if not _is_strided_1x1(weight, stride) or isinstance(padding, str):
        return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)
    vertical, horizontal = _pair(padding)
    if vertical or horizontal:
        input = F.pad(input, (horizontal, horizontal, vertical, vertical))
    return torch.conv2d(F.avg_pool2d(input, 1, stride), weight, bias, 1, 0, 1, groups)


def conv_transpose2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Size = 1,
    padding: Size = 0,
    output_padding: Size = 0,
    groups: int = 1,
    dilation: Size = 1,
) -> Tensor:
    """torch.conv_transpose2d, with a strided 1×1 one split into a 1×1 convolution of stride 1 and zero insertion."""
    if not _is_strided_1x1(weight, stride):
        return torch.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)
    y = torch.conv_transpose2d(input, weight, None, 1, 0, 0, groups)
    n, channels, height, width = y.shape
    down, right = _pair(stride)
    # [n, c, h, 1, w, 1]: rows and columns of zeros after each pixel
    y = F.pad(y.reshape(n, channels, height, 1, width, 1), (0, right - 1, 0, 0, 0, down - 1))
    y = y.reshape(n, channels, height * down, width * right)
    crop_y, crop_x = _pair(padding)
    extra_y, extra_x = _pair(output_padding)
    y = F.pad(y, (-crop_x, 1 - right + extra_x - crop_x, -crop_y, 1 - down + extra_y - crop_y))
    return y if bias is None else y + bias.view(1, -1, 1, 1)


def _is_strided_1x1(weight: Tensor, stride: Size) -> bool:
    return tuple(weight.shape[-2:]) == (1, 1) and _pair(stride) != (1, 1)


def _pair(size: Size) -> tuple[int, int]:
    down, right = (size, size) if isinstance(size, int) else size * (2 // len(size))
    return down, right


UNSTRIDED: dict[Override, Override] = {torch.conv2d: conv2d, torch.conv_transpose2d: conv_transpose2d}

"""Batched augmentation: a whole batch at a time, with separate random numbers for every image.

The numbers come from one table of uniforms per (seed, epoch), indexed by sample id. An image therefore gets the same
augmentation in the same epoch, regardless of batch order, sharding and process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mcd_cli.seeds import generator

GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as torchvision's rgb_to_grayscale
NUM_DRAWS = 12  # columns of the table; every preset uses the same columns for the same purpose


@dataclass(frozen=True)
class Augmentation:
    """The settings of a preset; the steps are crop, affine, flip, jitter and cutout, in this order."""

    crop: Literal["none", "pad", "resized"] = "none"
    padding: float = 0.125  # as a fraction of the side, for "pad" (4 of 32 px)
    flip: bool = False
    jitter: float = 0.0  # brightness, contrast and saturation factors in [1 - jitter, 1 + jitter]
    rotate: float = 0.0  # degrees
    shear: float = 0.0  # degrees
    cutout: float = 0.0  # side of the square, as a fraction of the image's side

    def __call__(self, images: Tensor, draws: Tensor) -> Tensor:
        """images: uint8 [n, 3, H, W]; draws: uniforms [n, NUM_DRAWS]. Returns float32 in [0, 1], channels-last."""
        u = draws.to(images.device)
        if self.crop == "pad":
            images = pad_crop(images, u[:, 0], u[:, 1], round(self.padding * images.shape[-1]))
        x = images.to(torch.float32, memory_format=torch.channels_last) / 255
        if self.crop == "resized":
            x = warp(x, *resized_crop(u[:, 0:4]))
        if self.rotate or self.shear:
            x = warp(x, *rotation(u[:, 4:6], self.rotate, self.shear))
        if self.flip:
            x = torch.where((u[:, 6] < 0.5)[:, None, None, None], x.flip(-1), x)
        if self.jitter:
            x = color_jitter(x, 1 + self.jitter * (2 * u[:, 7:10] - 1))
        if self.cutout:
            x = cutout(x, u[:, 10:12], round(self.cutout * x.shape[-1]))
        return x.contiguous(memory_format=torch.channels_last)


PRESETS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "digits": Augmentation(crop="pad"),
    "cifar": Augmentation(crop="pad", flip=True, jitter=0.1),
    "tiny": Augmentation(crop="resized", flip=True, jitter=0.1),
    "strong": Augmentation(crop="pad", flip=True, jitter=0.4, rotate=15, shear=10, cutout=0.5),
}


def draws_of_epoch(num_images: int, seed: int, epoch: int) -> Tensor:
    """The epoch's table of uniforms [num_images, NUM_DRAWS]; row i belongs to sample id i."""
    return torch.rand(num_images, NUM_DRAWS, generator=generator("augment", seed, epoch))


def pad_crop(images: Tensor, u_y: Tensor, u_x: Tensor, padding: int) -> Tensor:
    """Pad with black and crop back to the original size (torchvision's RandomCrop(padding))."""
    n, _, height, width = images.shape
    top, left = ((u * (2 * padding + 1)).long() for u in (u_y, u_x))
    windows = F.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # [n, 3, 2p+1, 2p+1, H, W]
    return windows[torch.arange(n, device=images.device), :, top, left]


def resized_crop(u: Tensor) -> tuple[Tensor, Tensor]:
    """RandomResizedCrop's box: area in [0.08, 1], aspect ratio log-uniform in [3/4, 4/3], inside the image.

    If a box does not fit, its longer side is clipped to the image (torchvision draws again, up to ten times). Returns
    the 2×2 matrices [n, 2, 2] and offsets [n, 2] that map output to input coordinates in [-1, 1].
    """
    area = 0.08 + 0.92 * u[:, 0]
    ratio = torch.exp(math.log(4 / 3) * (2 * u[:, 1] - 1))
    size = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=1).clamp(max=1)  # as a fraction of (W, H)
    offset = (1 - size) * (2 * u[:, 2:4] - 1)
    return torch.diag_embed(size), offset


def rotation(u: Tensor, rotate: float, shear: float) -> tuple[Tensor, Tensor]:
    """A rotation by up to ±rotate and a horizontal shear by up to ±shear degrees about the centre."""
    angle, slant = (math.radians(d) * (2 * u[:, i] - 1) for i, d in enumerate((rotate, shear)))
    cos, sin, tan = angle.cos(), angle.sin(), slant.tan()
    matrix = torch.stack([cos, tan * cos - sin, sin, tan * sin + cos], dim=1).view(-1, 2, 2)
    return matrix, torch.zeros_like(matrix[:, :, 0])


def warp(x: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Bilinear sampling of x [n, 3, H, W] at matrix · output coordinates + offset; black outside."""
    grid = F.affine_grid(torch.cat([matrix, offset[:, :, None]], dim=2), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def color_jitter(x: Tensor, factors: Tensor) -> Tensor:
    """Brightness b, then contrast c, then saturation s, as torchvision defines them; clamped once, at the end.

    All three are linear in the pixels, so they are one expression: s c b x + (1 - s) c b grey(x) + (1 - c) m with
    m the mean of grey(b x). factors: [n, 3].
    """
    b, c, s = factors[:, :, None, None, None].unbind(dim=1)
    grey = (x * torch.stack([x.new_full((), g) for g in GREY]).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    constant = (1 - c) * b * grey.mean(dim=(2, 3), keepdim=True)
    return (x * (s * c * b) + (grey * ((1 - s) * c * b) + constant)).clamp_(0, 1)


def cutout(x: Tensor, u: Tensor, side: int) -> Tensor:
    """Paint a grey square with `side` pixels around a random pixel, clipped at the borders (DeVries & Taylor 2017)."""
    height, width = x.shape[-2:]
    top = (u[:, 0] * height).long() - side // 2
    left = (u[:, 1] * width).long() - side // 2
    rows, cols = (torch.arange(size, device=x.device)[None] for size in (height, width))
    in_rows = (rows >= top[:, None]) & (rows < top[:, None] + side)
    in_cols = (cols >= left[:, None]) & (cols < left[:, None] + side)
    return x.masked_fill((in_rows[:, :, None] & in_cols[:, None, :])[:, None], 0.5)

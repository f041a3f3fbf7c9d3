"""ResNet10, 18 and 34 with a stem for small images (He et al. 2016; the networks of the paper's §4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mcd_cli.models.layers import global_avg_pool, init_weights


class Subsample(nn.Module):
    """Option A shortcut: takes every `stride`-th pixel and adds zero channels, half before and half after the old."""

    def __init__(self, new_channels: int, stride: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut; if the shape changes, the shortcut is option B (projection) or A."""

    def __init__(self, in_channels: int, channels: int, stride: int, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != channels:
            self.downsample = (
                nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
                if projection
                else Subsample(channels - in_channels, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.downsample(x), inplace=True)


class ResNet(nn.Module):
    """A ResNet for small images: images [n, 3, H, W] → logits [n, num_classes].

    A 3×3 stem of stride 1 without max-pool, stages of BasicBlocks with strides 1, 2, 2, …, global average pooling and
    a linear layer. widths, blocks: channels and number of blocks of each stage; stem: channels of the stem (default:
    the first width).
    """

    def __init__(
        self,
        num_classes: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        stem: int | None = None,
        projection: bool = True,
    ) -> None:
        super().__init__()
        channels = widths[0] if stem is None else stem
        self.conv1 = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.num_stages = len(widths)
        for i, (width, num_blocks) in enumerate(zip(widths, blocks, strict=True)):
            stage = nn.Sequential()
            for j in range(num_blocks):
                stage.append(BasicBlock(channels, width, 2 if i > 0 and j == 0 else 1, projection))
                channels = width
            self.add_module(f"layer{i + 1}", stage)
        self.fc = nn.Linear(channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        for i in range(self.num_stages):
            x = self.get_submodule(f"layer{i + 1}")(x)
        logits: Tensor = self.fc(global_avg_pool(x))
        return logits


resnet10_xxxs = partial(ResNet, widths=(4, 8, 8, 16), blocks=(1, 1, 1, 1))
resnet10_xxs = partial(ResNet, widths=(8, 8, 16, 16), blocks=(1, 1, 1, 1))
resnet10_xs = partial(ResNet, widths=(8, 16, 16, 32), blocks=(1, 1, 1, 1))
resnet10_s = partial(ResNet, widths=(8, 16, 32, 64), blocks=(1, 1, 1, 1))
resnet10_m = partial(ResNet, widths=(16, 32, 64, 128), blocks=(1, 1, 1, 1))
resnet10_l = partial(ResNet, widths=(32, 64, 128, 256), blocks=(1, 1, 1, 1))
resnet10 = partial(ResNet, widths=(64, 128, 256, 512), blocks=(1, 1, 1, 1))
resnet18 = partial(ResNet, widths=(64, 128, 256, 512), blocks=(2, 2, 2, 2))
resnet34 = partial(ResNet, widths=(64, 128, 256, 512), blocks=(3, 4, 6, 3))

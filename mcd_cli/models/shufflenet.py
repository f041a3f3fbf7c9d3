"""ShuffleNetV2 (Ma et al. 2018) for small images, after CRD (Tian et al. 2020): a 1×1 stem, no max-pool."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mcd_cli.models.layers import global_avg_pool, init_weights


def pointwise(in_channels: int, channels: int) -> list[nn.Module]:
    return [nn.Conv2d(in_channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]


def depthwise(channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    ]


class Unit(nn.Module):
    """Transforms half of the channels (with stride 2, all channels in both branches), then interleaves the halves."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        half = channels // 2
        self.splits = stride == 1
        inner = half if self.splits else in_channels
        self.branch1 = nn.Sequential()
        if not self.splits:
            self.branch1 = nn.Sequential(*depthwise(in_channels, stride), *pointwise(in_channels, half))
        self.branch2 = nn.Sequential(*pointwise(inner, half), *depthwise(half, stride), *pointwise(half, half))

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.chunk(2, dim=1) if self.splits else (x, x)
        halves = torch.stack((self.branch1(left), self.branch2(right)), dim=2)
        return halves.flatten(1, 2)  # interleaves the channels of the two halves


class ShuffleNetV2(nn.Module):
    """ShuffleNetV2: images [n, 3, H, W] → logits [n, num_classes].

    A stem with 24 channels, three stages of stride 2, a 1×1 convolution to 1024 channels, and a linear layer.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*pointwise(3, 24))
        self.layers = nn.Sequential()
        in_channels = 24
        for channels, num_units in ((116, 4), (232, 8), (464, 4)):
            stage = nn.Sequential()
            for j in range(num_units):
                stage.append(Unit(in_channels, channels, stride=2 if j == 0 else 1))
                in_channels = channels
            self.layers.append(stage)
        self.last = nn.Sequential(*pointwise(in_channels, 1024))
        self.fc = nn.Linear(1024, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(global_avg_pool(self.last(self.layers(self.stem(x)))))
        return logits


shufflenet_v2 = ShuffleNetV2

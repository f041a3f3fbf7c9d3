"""Wide ResNets (Zagoruyko & Komodakis 2016), pre-activation: wrn-DEPTH-WIDTH."""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from mcd_cli.models.layers import global_avg_pool, init_weights


class PreactivationBlock(nn.Module):
    """BN, ReLU, 3×3, BN, ReLU, 3×3; if the number of channels changes, with a 1×1 shortcut from the activated input."""

    def __init__(self, in_channels: int, channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(in_channels, channels, 1, stride, bias=False) if in_channels != channels else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out: Tensor = self.conv2(F.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))


class WideResNet(nn.Module):
    """A wide ResNet: images [n, 3, H, W] → logits [n, num_classes].

    The three stages have 16, 32 and 64 times `width` channels.
    """

    def __init__(self, num_classes: int, *, depth: int, width: int) -> None:
        super().__init__()
        assert (depth - 4) % 6 == 0, "a wide ResNet has 6n + 4 layers: three stages of n blocks"
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.layers = nn.Sequential()
        in_channels = 16
        for channels, stride in ((16 * width, 1), (32 * width, 2), (64 * width, 2)):
            stage = nn.Sequential()
            for j in range((depth - 4) // 6):
                stage.append(PreactivationBlock(in_channels, channels, stride if j == 0 else 1))
                in_channels = channels
            self.layers.append(stage)
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(in_channels, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.conv1(x))
        logits: Tensor = self.fc(global_avg_pool(F.relu(self.bn1(x))))
        return logits


wrn_16_2 = partial(WideResNet, depth=16, width=2)
wrn_40_1 = partial(WideResNet, depth=40, width=1)
wrn_40_2 = partial(WideResNet, depth=40, width=2)

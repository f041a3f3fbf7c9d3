"""MobileNetV2 (Sandler et al. 2018) for small images, after CRD (Tian et al. 2020): second stage stride 1."""

from __future__ import annotations

from torch import Tensor, nn

from mcd_cli.models.layers import global_avg_pool, init_weights


def conv_bn_relu(in_channels: int, channels: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    ]


class InvertedResidual(nn.Module):
    """1×1 to `expansion` times the channels, 3×3 depthwise, 1×1 projection; added to x if the shapes agree."""

    def __init__(self, in_channels: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = in_channels * expansion
        self.conv = nn.Sequential(
            *conv_bn_relu(in_channels, inner, 1),
            *conv_bn_relu(inner, inner, 3, stride, groups=inner),
            *conv_bn_relu(inner, channels, 1)[:2],
        )
        self.adds = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return x + out if self.adds else out


class MobileNetV2(nn.Module):
    """MobileNetV2: images [n, 3, H, W] → logits [n, num_classes].

    A stem with 32 channels and stride 2, seven stages, a 1×1 convolution to 1280 channels, and a linear layer.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn_relu(3, 32, 3, stride=2))
        self.layers = nn.Sequential()
        in_channels = 32
        for expansion, channels, num_blocks, stride in (
            (1, 16, 1, 1),
            (6, 24, 2, 1),
            (6, 32, 3, 2),
            (6, 64, 4, 2),
            (6, 96, 3, 1),
            (6, 160, 3, 2),
            (6, 320, 1, 1),
        ):
            stage = nn.Sequential()
            for j in range(num_blocks):
                stage.append(InvertedResidual(in_channels, channels, stride if j == 0 else 1, expansion))
                in_channels = channels
            self.layers.append(stage)
        self.last = nn.Sequential(*conv_bn_relu(in_channels, 1280, 1))
        self.fc = nn.Linear(1280, num_classes)
        init_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(global_avg_pool(self.last(self.layers(self.stem(x)))))
        return logits


mobilenet_v2x2 = MobileNetV2

"""Shared by all families of the zoo: the pooling before the head, and the weight initialisation."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def global_avg_pool(x: Tensor) -> Tensor:
    """Global average pooling: feature maps [n, c, h, w] of any size → [n, c]."""
    return F.adaptive_avg_pool2d(x, 1).flatten(1)


def init_weights(network: nn.Module) -> None:
    """Initialise convolutions kaiming-normal (fan-out, ReLU; He et al. 2015), BatchNorm with 1 and 0, in place.

    Linear layers keep torch's initialisation.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)

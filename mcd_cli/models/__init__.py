"""The zoo of networks by name, and the readers of weights files. The table is torch-free; `build` imports on demand.

To add an architecture, write a function in its family's file and add its name below. Do not rename parameters of
existing architectures: old weights files use them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mcd_cli.registry import Table

if TYPE_CHECKING:
    from torch import nn

TORCHVISION = "torchvision:"
SCALAR, LOSSES = "scalar", "losses"  # C-NETs outside the zoo: learned numbers; a network whose input is the losses

_ROWS = {
    "resnet": ("resnet10-xxxs resnet10-xxs resnet10-xs resnet10-s resnet10-m resnet10-l resnet10 resnet18 resnet34"),
    "cifar_resnet": (
        "resnet20 resnet32 resnet44 resnet56 resnet110 "
        "resnet20-a resnet32-a resnet44-a resnet56-a resnet110-a resnet8x4 resnet32x4"
    ),
    "wideresnet": "wrn-16-2 wrn-40-1 wrn-40-2",
    "shufflenet": "shufflenet-v2",
    "mobilenet": "mobilenet-v2x2",
}


class Architectures(Table):
    """The zoo's own networks, and torchvision's classifiers as `torchvision:NAME` or `torchvision:NAME@small`.

    Only torchvision knows its names, so `check` accepts all of them and `build` checks them.
    """

    def check(self, name: str) -> str:
        return name if name.startswith(TORCHVISION) else super().check(name)

    def load(self, name: str) -> Any:
        if not name.startswith(TORCHVISION):
            return super().load(name)
        from mcd_cli.models import torchvision_zoo

        return partial(torchvision_zoo.build, name.removeprefix(TORCHVISION))


ARCHITECTURES = Architectures(
    "architecture",
    {
        name: f"mcd_cli.models.{family}:{name.replace('-', '_')}"
        for family, names in _ROWS.items()
        for name in names.split()
    },
)


def build(arch: str, num_classes: int) -> nn.Module:
    """A freshly initialised network: images [n, 3, H, W] → logits [n, num_classes].

    Raises UserError for an unknown name, with the nearest known names.
    """
    network: nn.Module = ARCHITECTURES.load(arch)(num_classes)
    return network

"""The zoo of networks by name, and the readers of weights files. The table is torch-free; `build` imports on demand.

To add an architecture, write a function in its family's file and add its name below. Do not rename parameters of
existing architectures: old weights files use them.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from mcd_cli.registry import Row, Table

if TYPE_CHECKING:
    from torch import nn

TORCHVISION = "torchvision:"

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


def torchvision_name(arch: str) -> str | None:
    """NAME or NAME@small of `torchvision:NAME`; None for the zoo's own."""
    return arch.removeprefix(TORCHVISION) if arch.startswith(TORCHVISION) else None


class Architectures(Table[Row]):
    """The zoo's own rows, and torchvision's classifiers as `torchvision:NAME` or `torchvision:NAME@small`.

    Only torchvision knows its names, so `check` accepts all of them and `build` checks them.
    """

    def check(self, name: str) -> str:
        return name if torchvision_name(name) is not None else super().check(name)

    def load(self, name: str) -> Any:
        theirs = torchvision_name(name)
        if theirs is None:
            return super().load(name)
        from mcd_cli.models import torchvision_zoo

        return partial(torchvision_zoo.build, theirs)


ARCHITECTURES = Architectures(
    "architecture",
    {
        name: Row(f"mcd_cli.models.{family}:{name.replace('-', '_')}")
        for family, names in _ROWS.items()
        for name in names.split()
    },
)

COORDINATORS = Table(
    "C-NET",
    {
        "losses": Row("mcd_cli.models.coordinator:LossCoordinator"),
        "scalar": Row("mcd_cli.models.coordinator:ScalarCoordinator"),
    },
)
"""C-NETs that are not architectures, because their input is not the image: (num_seen, num_outputs) → network."""


def build(arch: str, num_classes: int) -> nn.Module:
    """A freshly initialised network: images [n, 3, H, W] → logits [n, num_classes].

    Raises UserError for an unknown name, with the nearest known names.
    """
    network: nn.Module = ARCHITECTURES.load(arch)(num_classes)
    return network

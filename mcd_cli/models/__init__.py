"""The zoo of networks by name, and the readers of weights files. The table is torch-free; `build` imports on demand.

To add an architecture, write a function in its family's file and add its name below. Do not rename parameters of
existing architectures: old weights files use them.
"""

from __future__ import annotations

from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from mcd_cli.registry import Row, Table

if TYPE_CHECKING:
    from torch import nn

TORCHVISION = "torchvision:"
LIBRARIES = {
    TORCHVISION: "mcd_cli.models.torchvision_zoo",
    "timm:": "mcd_cli.models.timm_zoo",
    "hf-hub:": "mcd_cli.models.timm_zoo",
}
"""Prefix → the module with `build(name, num_classes)` and `pretrained(name)` for the networks of another library."""

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


def library_of(arch: str) -> str | None:
    """The prefix of `torchvision:NAME`, `timm:NAME` or `hf-hub:USER/REPO`; None for the zoo's own."""
    return next((prefix for prefix in LIBRARIES if arch.startswith(prefix)), None)


class Architectures(Table[Row]):
    """The zoo's own rows, and the classifiers of other libraries: `torchvision:NAME`, `timm:NAME`, `hf-hub:USER/REPO`.

    Only the library knows its names, so `check` accepts all of them and `build` checks them.
    """

    def check(self, name: str) -> str:
        return name if library_of(name) is not None else super().check(name)

    def load(self, name: str) -> Any:
        prefix = library_of(name)
        if prefix is None:
            return super().load(name)
        return partial(import_module(LIBRARIES[prefix]).build, name.removeprefix(prefix))


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


def load_pretrained(network: nn.Module, arch: str) -> int:
    """Load the library's published weights into a network of this architecture, where shapes agree.

    Returns the number of tensors loaded: usually all but the head. Raises UserError if there are no weights of this
    name, and RunFailed if they cannot be downloaded.
    """
    prefix = library_of(arch)
    if prefix is None:
        raise ValueError(f"{arch} is not of a library")
    state = import_module(LIBRARIES[prefix]).pretrained(arch.removeprefix(prefix))
    own = network.state_dict()
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return len(fitting)

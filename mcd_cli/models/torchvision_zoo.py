"""torchvision's classifiers, untrained or with ImageNet weights: `NAME`, or `NAME@small` with a small-image stem."""

from __future__ import annotations

import contextlib
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn

from mcd_cli.errors import RunFailed, UserError, reason_of, unknown

SMALL = "@small"

# MobileNetV3 uses 0.01 and MNASNet 0.0003, meant for hundreds of epochs on ImageNet. After a few hundred steps, their
# running statistics would still be close to the initial ones (after 377 steps: 97.8 % on val in train mode, 11.5 % in
# eval mode).
BATCH_NORM_MOMENTUM = 0.1

# Families with a small-image variant, and the max-pool after their first convolution ("": a strided stage instead).
FIRST_POOLS = {
    "resnet": "maxpool",
    "resnext": "maxpool",
    "wide_resnet": "maxpool",
    "shufflenet": "maxpool",
    "googlenet": "maxpool1",
    "densenet": "features.pool0",
    "squeezenet": "features.2",
    "efficientnet": "",
    "mnasnet": "",
    "mobilenet": "",
    "regnet": "",
}

# Auxiliary heads are for training only; without init_weights these two networks emit a warning.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": False, "init_weights": True},
    "inception_v3": {"aux_logits": False, "transform_input": False, "init_weights": True},
}


def names() -> list[str]:
    """The names of torchvision's image classifiers."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def adapts(name: str) -> bool:
    """Whether `NAME@small` exists."""
    return name.startswith(tuple(FIRST_POOLS))


def build(name: str, num_classes: int) -> nn.Module:
    """torchvision's NAME or NAME@small with random weights: images [n, 3, H, W] → logits [n, num_classes].

    `@small` omits the first two halvings of the resolution, so that 32×32 images end as 4×4 (without it, 224×224 end
    as 7×7): the first convolution gets stride 1 and a kernel of at most 3×3, and the max-pool after it is removed (if
    there is none, the next stage gets stride 1). BatchNorm's momentum is at least PyTorch's default. Raises UserError
    for an unknown name or a network that cannot be adapted.
    """
    plain = name.removesuffix(SMALL)
    if plain not in names():
        raise unknown("torchvision architecture", plain, names())
    if name != plain and not adapts(plain):
        raise UserError(f"torchvision:{plain} has no stem to adapt to small images; use it without {SMALL}")
    network: nn.Module = torchvision.models.get_model(
        plain, weights=None, num_classes=num_classes, **ARGUMENTS.get(plain, {})
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.momentum is not None:
            module.momentum = max(module.momentum, BATCH_NORM_MOMENTUM)
    if name != plain:
        adapt(network, next(pool for family, pool in FIRST_POOLS.items() if plain.startswith(family)))
    return network


def pretrained(name: str) -> dict[str, torch.Tensor]:
    """The ImageNet weights of NAME or NAME@small; torchvision downloads them into torch's cache (TORCH_HOME).

    Raises RunFailed if they cannot be downloaded.
    """
    weights = torchvision.models.get_model_weights(name.removesuffix(SMALL)).DEFAULT
    try:
        with contextlib.redirect_stdout(sys.stderr):  # torch announces downloads on stdout
            state: dict[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise RunFailed(
            f"cannot download the pretrained weights of torchvision:{name} ({reason_of(error)}); "
            f"download {weights.url} into {folder}"
        ) from None
    return state


def adapt(network: nn.Module, first_pool: str) -> None:
    """Remove the stride of the first convolution and the next reduction of the resolution, in place."""
    convs = {name: m for name, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    first, *later = convs
    old = convs[first]
    kernel = min(old.kernel_size[0], 3)
    stem = nn.Conv2d(3, old.out_channels, kernel, padding=kernel // 2, bias=old.bias is not None)
    nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
    if stem.bias is not None:
        nn.init.zeros_(stem.bias)
    network.set_submodule(first, stem)
    if first_pool:
        network.set_submodule(first_pool, nn.Identity())
        return
    halving = [name for name in later if convs[name].stride == (2, 2)]
    stage = halving[0].split(".")[:2]
    for name in halving:
        if name.split(".")[:2] == stage:  # in RegNet, both a block and its shortcut have a stride
            convs[name].stride = (1, 1)

"""The CIFAR ResNets of 6n + 2 layers (He et al. 2016, §4.2): three stages of n blocks.

The number in a name counts the layers. Shortcuts are projections (option B); names with `-a` have parameter-free
shortcuts (option A); names with `x4` are four times as wide, after CRD (Tian et al. 2020).
"""

from __future__ import annotations

from functools import partial

from mcd_cli.models.resnet import ResNet

_plain = partial(ResNet, widths=(16, 32, 64))
_free = partial(ResNet, widths=(16, 32, 64), projection=False)
_wide = partial(ResNet, stem=32, widths=(64, 128, 256))

resnet20 = partial(_plain, blocks=(3, 3, 3))
resnet32 = partial(_plain, blocks=(5, 5, 5))
resnet44 = partial(_plain, blocks=(7, 7, 7))
resnet56 = partial(_plain, blocks=(9, 9, 9))
resnet110 = partial(_plain, blocks=(18, 18, 18))

resnet20_a = partial(_free, blocks=(3, 3, 3))
resnet32_a = partial(_free, blocks=(5, 5, 5))
resnet44_a = partial(_free, blocks=(7, 7, 7))
resnet56_a = partial(_free, blocks=(9, 9, 9))
resnet110_a = partial(_free, blocks=(18, 18, 18))

resnet8x4 = partial(_wide, blocks=(1, 1, 1))
resnet32x4 = partial(_wide, blocks=(5, 5, 5))

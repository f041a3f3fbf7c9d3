"""mixup and CutMix: every image of a batch becomes one of two images, with two labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.special import betaincinv
from torch import Tensor

from mcd_cli.data.loader import Batch


@dataclass(frozen=True)
class Mixing:
    """mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019): α of Beta(α, α), from which λ is drawn; 0: not used.

    Where both are used, every step draws one of them. λ and CutMix's box are the same for all images of a step and in
    all processes; an image's partner is the one before it in the batch, of the same process.
    """

    mixup: float
    cutmix: float

    def __call__(self, batch: Batch, generator: torch.Generator) -> Batch:
        """The mixed batch; its ids and labels are those of the image with the larger share."""
        which, u, *centre = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        cuts = self.cutmix > 0 and (self.mixup == 0 or which < 0.5)
        alpha = self.cutmix if cuts else self.mixup
        share = float(betaincinv(alpha, alpha, u))  # λ ~ Beta(α, α), of the image itself
        x, partners = batch.images, batch.images.roll(1, 0)
        if cuts:
            images, share = cut(x, partners, share, centre)
        else:
            images = share * x + (1 - share) * partners
        pairs = [(batch.ids, batch.labels, share), (batch.ids.roll(1), batch.labels.roll(1), 1 - share)]
        (ids, labels, share), (_, second, _) = pairs if share >= 0.5 else reversed(pairs)
        images = images.contiguous(memory_format=torch.channels_last)
        return Batch(ids, images, labels, batch.size, second, x.new_full((), share))


def cut(x: Tensor, partners: Tensor, share: float, centre: list[float]) -> tuple[Tensor, float]:
    """x with the partners' pixels in a box of the area 1 − share, clipped at the borders; x's actual share.

    x: [n, 3, H, W]; centre: of the box, uniforms for its row and its column.
    """
    rows, columns = (window(u, size, share) for u, size in zip(centre, x.shape[-2:], strict=True))
    mixed = x.clone()
    mixed[:, :, rows, columns] = partners[:, :, rows, columns]
    return mixed, 1 - x[0, 0, rows, columns].numel() / x[0, 0].numel()


def window(u: float, size: int, share: float) -> slice:
    """The box's extent along a side of `size` pixels, around the pixel that the uniform u points at."""
    middle, half = int(u * size), int(0.5 * (1 - share) ** 0.5 * size)
    return slice(max(0, middle - half), min(size, middle + half))

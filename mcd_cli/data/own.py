"""A data set in memory or behind a torch Dataset: pairs of an image and a label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from mcd_cli.data.dataset import Decoded, Request, measured
from mcd_cli.data.images import resized
from mcd_cli.data.splits import Part
from mcd_cli.errors import UserError


class Pairs(Protocol):
    """What torch.utils.data.Dataset offers: a length, and (image, label) by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True)
class Own:
    """Reads the pairs as a data set. A part that is None is taken from train.

    An image is a PIL image, uint8 [H, W, 3] or [H, W], or a torch tensor [3, H, W] or [1, H, W], uint8 or float in
    [0, 1]. A label is an index into classes.
    """

    classes: Sequence[str]
    train: Pairs
    val: Pairs | None = None
    test: Pairs | None = None

    def __call__(self, request: Request) -> Decoded:
        images, labels, parts = [], [], []
        has_parts = self.val is not None or self.test is not None
        for part, pairs in (
            (Part.TRAIN if has_parts else Part.ANY, self.train),
            (Part.VAL, self.val),
            (Part.TEST, self.test),
        ):
            for image, label in () if pairs is None else _each(pairs):
                images.append(_fitted(image, request.image_size))
                labels.append(self._checked(label))
                parts.append(part)
        if len({image.shape for image in images}) > 1:
            raise UserError("the images of the data set differ in size; give image_size")
        if not images:
            raise UserError("the data set has no images")
        if images[0].shape[1] != images[0].shape[2]:
            raise UserError("the images of the data set are not square; give image_size")
        stacked = np.stack(images)
        return measured(tuple(self.classes), stacked, np.array(labels), np.array(parts, dtype=np.uint8))

    def _checked(self, label: Any) -> int:
        index = int(label)
        if not 0 <= index < len(self.classes):
            raise UserError(f"label {index} of the data set is not an index into its {len(self.classes)} classes")
        return index


def _each(pairs: Pairs) -> Iterator[tuple[Any, Any]]:
    for index in range(len(pairs)):
        image, label = pairs[index]
        yield image, label


def _fitted(image: Any, side: int | None) -> npt.NDArray[np.uint8]:
    """uint8 [3, H, W]."""
    if isinstance(image, Image.Image):
        pixels = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    elif isinstance(image, np.ndarray):
        pixels = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    elif hasattr(image, "is_floating_point"):
        pixels = (image * 255).round().clamp(0, 255).byte().numpy() if image.is_floating_point() else image.numpy()
    else:
        raise UserError(f"an image of the data set is a {type(image).__name__}; give PIL images, arrays or tensors")
    if pixels.ndim != 3 or pixels.shape[0] not in (1, 3) or pixels.dtype != np.uint8:
        raise UserError(f"an image of the data set is {pixels.dtype} {list(pixels.shape)}; give RGB or grey, in 8 bits")
    pixels = np.ascontiguousarray(np.repeat(pixels, 3 // len(pixels), axis=0))
    fitted: npt.NDArray[np.uint8] = pixels if side is None else resized(pixels[None], side)[0]
    return fitted

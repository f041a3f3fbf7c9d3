"""The data set classes: `Dataset` for the engine, and `Request` and `Decoded` for the readers."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mcd_cli.data import splits
from mcd_cli.norms import RGB

if TYPE_CHECKING:
    import torch

BLOCK_BYTES = 2**24  # images processed at a time


@dataclass(frozen=True)
class Request:
    """A request to a reader; `root` is the data root of a built-in data set, or the image folder."""

    root: Path | None
    image_size: int | None
    skip_bad_images: bool
    report: Callable[[str], None]
    max_bytes: int = 2**62  # limit for images held in memory; a larger data set is memory-mapped from the cache


@dataclass(frozen=True, eq=False)
class Decoded:
    """The result of a reader: everything about a data set that does not depend on a seed."""

    classes: tuple[str, ...]
    images: npt.NDArray[np.uint8]  # [N, 3, H, W], RGB
    labels: npt.NDArray[np.int64]  # [N]
    parts: npt.NDArray[np.uint8]  # [N], splits.Part: the official split
    moments: npt.NDArray[np.int64]  # [N, 2, 3]: sum and sum of squares of each image's channels
    fingerprint: str
    norm: tuple[RGB, RGB] | None = None  # published mean and std; None: computed on train and val
    held_out: tuple[float, float] = splits.HELD_OUT


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set with its splits. A sample id is an index into `images`; the paper's V is `val`."""

    name: str
    classes: tuple[str, ...]
    images: torch.Tensor  # uint8 [N, 3, H, W], RGB
    labels: torch.Tensor  # int64 [N]; includes label noise, if any
    train: torch.Tensor  # int64 sample ids, sorted; train, val and test are disjoint and cover all images
    val: torch.Tensor
    test: torch.Tensor
    mean: RGB  # for RGB in [0, 1]
    std: RGB
    split_seed: int
    label_noise: float
    fingerprint: str  # sha256 of pixels, clean labels, class names and official split
    mislabelled: torch.Tensor  # bool [N]: label noise has changed the label

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(3, H, W) of one image."""
        _, _, height, width = self.images.shape
        return (3, height, width)


def measured(
    classes: tuple[str, ...],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    parts: npt.NDArray[np.uint8],
) -> Decoded:
    """The arrays with their moments and fingerprint; the sums are integers, so they are the same on any machine."""
    moments = np.empty((len(images), 2, 3), dtype=np.int64)

    def measure(start: int, block: npt.NDArray[np.uint8]) -> None:
        values = block.reshape(len(block), 3, -1).astype(np.uint32)  # 255^2 fits
        moments[start : start + len(block), 0] = values.sum(axis=-1, dtype=np.int64)
        moments[start : start + len(block), 1] = (values * values).sum(axis=-1, dtype=np.int64)

    return Decoded(classes, images, labels, parts, moments, fingerprint(classes, images, labels, parts, measure))


def fingerprint(
    classes: tuple[str, ...],
    images: npt.NDArray[np.uint8],
    labels: npt.NDArray[np.int64],
    parts: npt.NDArray[np.uint8],
    on_block: Callable[[int, npt.NDArray[np.uint8]], None] = lambda start, block: None,
) -> str:
    """The sha256 of all arguments; on_block is called with the first index and the images of each block."""
    digest = hashlib.sha256(json.dumps([list(images.shape), list(classes)]).encode())
    digest.update(np.ascontiguousarray(labels, dtype="<i8").tobytes())
    digest.update(parts.tobytes())
    step = max(1, BLOCK_BYTES // int(np.prod(images.shape[1:])))
    for start in range(0, len(images), step):
        block = np.ascontiguousarray(images[start : start + step])
        digest.update(block.data)
        on_block(start, block)
    return digest.hexdigest()


def mean_std(moments: npt.NDArray[np.int64], num_pixels: int) -> tuple[RGB, RGB]:
    """Mean and std per channel, for RGB in [0, 1] and images of `num_pixels` pixels, rounded to six digits."""
    count = len(moments) * num_pixels
    means, stds = [], []
    for total, squares in moments.sum(axis=0).T.tolist():
        mean = total / count
        variance = (squares * count - total * total) / count**2
        means.append(round(mean / 255, 6))
        # A constant channel (such as no blue at all) has std 0; 1 keeps its normalised value finite.
        stds.append(round(variance**0.5 / 255, 6) or 1.0)
    return (means[0], means[1], means[2]), (stds[0], stds[1], stds[2])


def assemble(name: str, decoded: Decoded, *, split_seed: int, label_noise: float) -> Dataset:
    """The decoded data set, split and with label noise by split_seed. Raises UserError if a class is too small."""
    import torch

    split = splits.split(decoded.labels, decoded.parts, decoded.classes, split_seed, decoded.held_out)
    labels = splits.with_noise(decoded.labels, split.train, len(decoded.classes), label_noise, split_seed)
    if decoded.norm is None:
        ids = np.concatenate([split.train, split.val])
        mean, std = mean_std(decoded.moments[ids], decoded.images.shape[2] * decoded.images.shape[3])
    else:
        mean, std = decoded.norm
    with warnings.catch_warnings():
        # Images larger than memory are mapped read-only; nothing writes to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        images = torch.from_numpy(decoded.images)
    return Dataset(
        name=name,
        classes=decoded.classes,
        images=images,
        labels=torch.from_numpy(labels),
        train=torch.from_numpy(split.train),
        val=torch.from_numpy(split.val),
        test=torch.from_numpy(split.test),
        mean=mean,
        std=std,
        split_seed=split_seed,
        label_noise=label_noise,
        fingerprint=decoded.fingerprint,
        mislabelled=torch.from_numpy(labels != decoded.labels),
    )

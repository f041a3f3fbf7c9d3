"""Batches of images: their order and augmentation depend only on seeds and positions."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mcd_cli.data.augment import Augmentation, draws_of_epoch
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.pixels import InMemory, Pixels, Streamed
from mcd_cli.errors import UserError
from mcd_cli.ops.distributed import SINGLE_PROCESS, Processes
from mcd_cli.seeds import generator

CHUNK = 2**26  # bytes of float32 images that a GPU augments at once, ahead of the steps that use them


class Batch(NamedTuple):
    """This process's shard of a batch.

    ids: sample ids [n]; images: float32 RGB in [0, 1], [n, 3, H, W] channels-last; labels: [n]; size: number of
    images in the batch over all processes. Where each image is a mixture of two (see mixing.py), ids and labels are
    those of the larger part; second: the labels of the other [n]; share: λ ≥ 1/2, of the larger part, a scalar.
    """

    ids: Tensor
    images: Tensor
    labels: Tensor
    size: int
    second: Tensor | None = None
    share: Tensor | None = None

    def over_labels(self, f: Callable[[Tensor], Tensor]) -> Tensor:
        """f of the labels; where images are mixed, λ f(labels) + (1 − λ) f(second)."""
        if self.second is None or self.share is None:
            return f(self.labels)
        return self.share * f(self.labels) + (1 - self.share) * f(self.second)


def plain(images: Tensor) -> Tensor:
    """The test transform: uint8 → float32 in [0, 1], channels-last, without augmentation."""
    return images.to(torch.float32, memory_format=torch.channels_last) / 255


class Loader:
    """Yields this process's shards of the batches of a data set: of train, of val or of any split.

    memory: bytes that the images may occupy on the device; larger data sets are streamed from disk (None: no limit).
    ahead: number of batches to augment at once. None: one on a CPU, because it fits into the cache, and many on a
    GPU, because the host needs longer to launch one batch than the GPU to augment it.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        augment_seed: int,
        device: torch.device,
        processes: Processes = SINGLE_PROCESS,
        memory: int | None = None,
        ahead: int | None = None,
    ) -> None:
        if batch_size > len(dataset.train):
            raise UserError(
                f"a batch of {batch_size} is larger than the training split ({len(dataset.train)} images); "
                f"use --batch-size {max(2, len(dataset.train) // 4)} or smaller"
            )
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.augmentation = augmentation
        self.augment_seed = augment_seed
        self.device = device
        self.processes = processes
        self.streams = memory is not None and dataset.images.nbytes > memory
        self.pixels: Pixels = (Streamed if self.streams else InMemory)(dataset.images, device)
        self.labels = dataset.labels.to(device)
        batch_bytes = 4 * batch_size * dataset.images[0].numel()
        self.ahead = ahead or (1 if device.type == "cpu" else max(1, CHUNK // batch_bytes))
        self.num_steps = len(dataset.train) // batch_size  # the last short batch is dropped

    def training_on(self, train: Tensor) -> Loader:
        """A loader with the same images, val and test, but another training split (sorted sample ids)."""
        loader = copy.copy(self)
        loader.dataset = replace(self.dataset, train=train)
        loader.num_steps = len(train) // self.batch_size
        return loader

    def epoch(self, epoch: int, start: int = 0, views: int = 0) -> Iterator[Batch]:
        """The training batches of an epoch from step `start` on; views: views per image (0: a new one every epoch)."""
        train = self.dataset.train
        order = self._beside_pixels(train[torch.randperm(len(train), generator=generator("order", self.seed, epoch))])
        draws = self._beside_pixels(self._draws(epoch % views if views else epoch))
        batches = [
            self.processes.shard(order[step * self.batch_size : (step + 1) * self.batch_size])
            for step in range(self.num_steps)
        ]
        # the chunks, and thus the arithmetic, must not depend on the step where the epoch is resumed
        firsts = range(start - start % self.ahead, self.num_steps, self.ahead)
        chunks = [torch.cat(batches[first : first + self.ahead]) for first in firsts]
        for first, chunk, pixels in zip(firsts, chunks, self.pixels.each(chunks), strict=True):
            images = self.augmentation(pixels, draws[chunk]).split(len(batches[0]))
            for step in range(max(start, first), first + len(images)):
                yield self._batch(batches[step], images[step - first], self.batch_size)

    def view(self, view: int) -> Iterator[Batch]:
        """Every training image once, augmented as in that view, in order; every process sees all of them."""
        draws = self._beside_pixels(self._draws(view))
        batches = self._beside_pixels(self.dataset.train).split(self.batch_size)
        for ids, pixels in zip(batches, self.pixels.each(batches), strict=True):
            yield self._batch(ids, self.augmentation(pixels, draws[ids]), len(ids))

    def validation_batch(self, update: int) -> Batch:
        """The mini-batch of val for the given update of C-NET: min(batch, |V|) images, without replacement."""
        val = self.dataset.val
        size = min(self.batch_size, len(val))
        lap, position = divmod(update, len(val) // size)
        order = val[torch.randperm(len(val), generator=generator("validation", self.seed, lap))]
        ids = self._beside_pixels(self.processes.shard(order[position * size : (position + 1) * size]))
        return self._batch(ids, plain(self.pixels.take(ids)), size)

    def in_order(self, split: Tensor) -> Iterator[Batch]:
        """This process's shard of the split, in order and without augmentation; the last batch may be short."""
        batches = self._beside_pixels(self.processes.shard(split)).split(max(self.batch_size, 256))
        for ids, pixels in zip(batches, self.pixels.each(batches), strict=True):
            yield self._batch(ids, plain(pixels), len(ids))

    def _draws(self, view: int) -> Tensor:
        return draws_of_epoch(len(self.dataset.images), self.augment_seed, view)

    def _batch(self, ids: Tensor, images: Tensor, size: int) -> Batch:
        ids = self._on_device(ids)
        return Batch(ids, images, self.labels[ids], size)

    def _beside_pixels(self, tensor: Tensor) -> Tensor:
        """Move an index into the pixels to their device, once instead of batch by batch."""
        return tensor if self.streams else self._on_device(tensor)

    def _on_device(self, tensor: Tensor) -> Tensor:
        """Move a tensor to the device without making the host wait."""
        if self.device.type != "cuda" or tensor.device.type != "cpu":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

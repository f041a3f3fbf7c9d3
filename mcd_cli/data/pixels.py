"""Provides the pixels of a data set during training, from the device's memory or from disk."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mcd_cli.errors import RunFailed

NUM_WORKERS = 2  # enough to stay ahead of training, because reading decoded pixels is only copying
NUM_AHEAD = 2 * NUM_WORKERS  # batches, as in a DataLoader
FORKS = hasattr(os, "fork") and sys.platform != "darwin"  # Apple's libraries do not survive a fork


class Pixels(Protocol):
    """Access to uint8 images [N, 3, H, W] by sample id."""

    def take(self, ids: Tensor) -> Tensor:
        """The images with these ids, on the training device."""
        ...

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """One batch after another, on the training device."""
        ...


class InMemory:
    """All images on the training device."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images.to(device)

    def take(self, ids: Tensor) -> Tensor:
        return self.images[ids]

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.take, batches)


class Streamed:
    """Images read from the host, usually from a memory-mapped file, a few batches ahead.

    DataLoader workers read them and share the mapping, so nothing is pickled. Where processes cannot be forked,
    threads read them: spawned workers would import torch again for every epoch.
    """

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images
        self.device = device

    def take(self, ids: Tensor) -> Tensor:
        return self.images[ids].to(self.device)

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """One batch after another, on the training device. Raises RunFailed if a worker dies."""
        return self._by_workers(batches) if FORKS else self._by_threads(batches)

    def _by_threads(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        images = self.images.numpy()
        with ThreadPoolExecutor(NUM_WORKERS) as threads:
            ahead: deque[Future[Any]] = deque()
            for ids in batches:
                ahead.append(threads.submit(np.take, images, ids.numpy(), axis=0))  # releases the interpreter lock
                if len(ahead) > NUM_AHEAD:
                    yield torch.from_numpy(ahead.popleft().result()).to(self.device)
            while ahead:
                yield torch.from_numpy(ahead.popleft().result()).to(self.device)

    def _by_workers(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        workers = DataLoader(
            _Rows(self.images),
            sampler=batches,  # type: ignore[arg-type]  # each "index" is a batch of ids
            batch_size=None,
            num_workers=NUM_WORKERS,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork",
        )
        try:
            for pixels in workers:
                yield pixels.to(self.device, non_blocking=True)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise RunFailed(
                "a worker process that reads images has died (killed, out of memory, or the cached data set was "
                "truncated); checkpoints are intact: resume the run"
            ) from None


class _Rows(TorchDataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.images[ids]

"""Where the pixels of a data set are while it is trained on: in the device's memory, or on disk."""

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

NUM_WORKERS = 2  # reading decoded pixels is copying: two keep ahead of the training
NUM_AHEAD = 2 * NUM_WORKERS  # batches, as a DataLoader's
FORKS = hasattr(os, "fork") and sys.platform != "darwin"  # Apple's libraries do not survive a fork


class Pixels(Protocol):
    """uint8 [N, 3, H, W] by sample id."""

    def take(self, ids: Tensor) -> Tensor:
        """Those images, on the training device."""
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
    """Read from the host, as a rule a memory-mapped file, some batches ahead.

    By DataLoader workers, which share the mapping: nothing is copied or pickled. Where processes cannot be forked,
    by threads: spawned workers would import torch again for every epoch.
    """

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images
        self.device = device

    def take(self, ids: Tensor) -> Tensor:
        return self.images[ids].to(self.device)

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Raises RunFailed when a worker dies."""
        return self._by_workers(batches) if FORKS else self._by_threads(batches)

    def _by_threads(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        images = self.images.numpy()
        with ThreadPoolExecutor(NUM_WORKERS) as threads:
            ahead: deque[Future[Any]] = deque()
            for ids in batches:
                ahead.append(threads.submit(np.take, images, ids.numpy(), axis=0))  # copies without the interpreter
                if len(ahead) > NUM_AHEAD:
                    yield torch.from_numpy(ahead.popleft().result()).to(self.device)
            while ahead:
                yield torch.from_numpy(ahead.popleft().result()).to(self.device)

    def _by_workers(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        workers = DataLoader(
            _Rows(self.images),
            sampler=batches,  # type: ignore[arg-type]  # a batch of ids stands for one "index"
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
                "a process that reads images ahead has died (killed, out of memory, or the decoded data set was "
                "cut short); what was saved before stays"
            ) from None


class _Rows(TorchDataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __getitem__(self, ids: Tensor) -> Tensor:
        return self.images[ids]

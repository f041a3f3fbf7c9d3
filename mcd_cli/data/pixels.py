"""Where the pixels of a data set are while it is trained on: in the device's memory, or on disk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from mcd_cli.errors import RunFailed

NUM_WORKERS = 2  # reading decoded pixels is copying: two keep ahead of the training


class Pixels(Protocol):
    """uint8 [N, 3, H, W] by sample id."""

    def take(self, ids: Tensor) -> Tensor:
        """Those images, on the training device."""
        ...

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """One batch after another, on the training device."""
        ...


class InMemory:
    """A copy of all images on the training device; what happens to the files no longer matters."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images.to(device, copy=True)

    def take(self, ids: Tensor) -> Tensor:
        return self.images[ids]

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        return map(self.take, batches)


class Streamed:
    """Read from the memory-mapped file by DataLoader workers, some batches ahead."""

    def __init__(self, images: Tensor, device: torch.device) -> None:
        self.images = images
        self.device = device

    def take(self, ids: Tensor) -> Tensor:
        return self.images[ids].to(self.device)

    def each(self, batches: Sequence[Tensor]) -> Iterator[Tensor]:
        """Raises RunFailed when a worker dies."""
        workers = DataLoader(
            _Rows(self.images),
            sampler=batches,  # type: ignore[arg-type]  # a batch of ids stands for one "index"
            batch_size=None,
            num_workers=NUM_WORKERS,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context="fork",  # the workers share the mapping; nothing is copied or pickled
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

"""Caches the teacher's logits for a fixed set of augmented views, shared by all runs with the same images.

With `teacher.views = K`, an image has K augmentations (view = epoch mod K) instead of a new one in every epoch. A
view's logits depend only on the teacher's file, the images and the augmentation. The first run that needs them
computes them; runs with other students, methods or seeds read them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mcd_cli.data.cache import cache_folder, lock
from mcd_cli.data.loader import Loader
from mcd_cli.engine.events import InfoMessage, Listener
from mcd_cli.engine.hardware import Hardware
from mcd_cli.engine.teacher import Teacher
from mcd_cli.files import cannot_write, reserve, sha256_of, write_whole
from mcd_cli.models.students import forward_in_chunks
from mcd_cli.quantities import show_size

BYTES = 2  # float16


class TeacherLogits:
    """The cached logits of one teacher for the training images of one loader."""

    def __init__(self, teacher: Teacher, loader: Loader, hardware: Hardware, num_views: int, emit: Listener) -> None:
        self.teacher = teacher
        self.loader = loader
        self.hardware = hardware
        self.num_views = num_views
        self.emit = emit
        self.shape = (len(loader.dataset.images), loader.dataset.num_classes)
        self.key = _key(teacher, loader, hardware)
        self.checked: set[Path] = set()
        self.held: tuple[int, Tensor] | None = None  # the last epoch read

    def __call__(self, epoch: int) -> Tensor:
        """The logits for that epoch's view, float16 [N, C] by sample id, memory-mapped or copied to the GPU.

        Rows of images outside of the training split are zero. Raises RunFailed if the disk is full.
        """
        if self.held is None or self.held[0] != epoch:
            self.held = epoch, self._load(epoch % self.num_views)
        return self.held[1]

    def _load(self, view: int) -> Tensor:
        path = cache_folder("views") / f"{self.key}-{view}.npy"
        if path not in self.checked:
            with lock(path.with_suffix(".lock")):
                if not _is_whole(path):  # missing or damaged; checked under the lock, as another process may write it
                    self._compute(view, path)
            self.checked.add(path)
        return torch.from_numpy(np.load(path, mmap_mode="c")).to(self.hardware.device)

    def _compute(self, view: int, path: Path) -> None:
        num_images = len(self.loader.dataset.train)
        size = show_size(BYTES * self.shape[0] * self.shape[1])
        self.emit(
            InfoMessage(
                f"computing the teacher's logits for view {view + 1} of {self.num_views}: "
                f"{num_images:,} images, {size} in the cache"
            )
        )
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
        try:
            table = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=self.shape)
            reserve(temporary, table.offset)
            for batch in self.loader.view(view):
                with torch.no_grad(), self.hardware.autocast():
                    logits = forward_in_chunks(self.teacher.network, batch.images)
                table[batch.ids.cpu().numpy()] = logits.to(torch.float16).cpu().numpy()
            table.flush()
            del table  # Windows cannot rename a mapped file
            write_whole(_hash_of(path), sha256_of(temporary).encode())
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error, BYTES * self.shape[0] * self.shape[1]) from None
        finally:
            temporary.unlink(missing_ok=True)


class NoTeacherLogits(TeacherLogits):
    """A stand-in for time estimates: returns zeros, computes and reads nothing."""

    def _load(self, view: int) -> Tensor:
        return torch.zeros((), dtype=torch.float16, device=self.hardware.device).expand(self.shape)


def _hash_of(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    try:
        return _hash_of(path).read_text(encoding="ascii") == sha256_of(path)
    except (OSError, ValueError):
        return False


def _key(teacher: Teacher, loader: Loader, hardware: Hardware) -> str:
    content = {
        "teacher": teacher.sha256,
        "norm": [teacher.mean, teacher.std],
        "images": loader.dataset.fingerprint,
        "trained_on": hashlib.sha256(loader.dataset.train.numpy().tobytes()).hexdigest(),
        "augmentation": vars(loader.augmentation),
        "augment_seed": loader.augment_seed,
        "precision": [hardware.device.type, hardware.precision],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]

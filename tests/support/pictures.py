"""Folders of small images to test on."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcd_cli.data import load_dataset
from mcd_cli.data.dataset import Dataset
from mcd_cli.errors import McdError


class Loading:
    """`load_dataset` with a cache of its own, and what it said."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MCD_CACHE", str(cache))
        self.cache = cache
        self.said: list[str] = []

    def __call__(self, name: str | Path, **options: object) -> Dataset:
        return load_dataset(str(name), report=self.said.append, **options)


def picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    """Noise, so no two are alike."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def fill(folder: Path, count: int) -> None:
    """Puts 000.png, 001.png, ... into a new folder."""
    folder.mkdir(parents=True)
    for i in range(count):
        picture(zlib.crc32(f"{folder} {i}".encode())).save(folder / f"{i:03d}.png")


def classes(root: Path, *names: str, count: int = 10) -> Path:
    """Class folders below root, which is returned."""
    for name in names:
        fill(root / name, count)
    return root


def pixels(path: Path) -> bytes:
    """What a picture holds, to compare with `stored`."""
    with Image.open(path) as image:
        return image.tobytes()


def stored(data: Dataset, index: int | torch.Tensor) -> bytes:
    return data.images[index].permute(1, 2, 0).numpy().tobytes()


def huge_png(width: int, height: int) -> bytes:
    """A PNG that says how large it is and stops."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b""))]
    framed = [struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)


def one_line(error: pytest.ExceptionInfo[McdError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


def image_folder(root: Path, classes: str, num_images: int) -> None:
    pixels = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(num_images):
            Image.fromarray(pixels.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(root / name / f"{i}.png")

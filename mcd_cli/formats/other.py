"""What a format beside ONNX has to do: write a student's file, and run it in its own runtime for the check."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import nn

from mcd_cli.ladder.session import Images, Logits


class Writer(Protocol):
    """tolerance: how far a logit may be from the model's, as a fraction of the largest; max_drop: what val may lose."""

    tolerance: float
    max_drop: float

    def write(self, network: nn.Module, onnx: bytes, shape: tuple[int, ...], path: Path) -> list[Path]:
        """Write the network, float32 in eval mode on the CPU, whose ONNX file is `onnx`. Returns the files, path first.

        shape: (3, H, W) of an image. The file takes any number of images.
        """

    def open(self, path: Path, threads: int) -> Callable[[Images], Logits]:
        """The file as a function: float32 [n, 3, H, W] → logits [n, C], on the CPU."""

"""A program of torch.export, which PyTorch loads without the network's source code."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from mcd_cli.ladder.session import Images, Logits


class Pt2:
    """float32; for `torch.export.load(file).module()`, and for compilers that start from it."""

    tolerance = 1e-4
    max_drop = 0.0

    def write(self, network: nn.Module, onnx: bytes, shape: tuple[int, ...], path: Path) -> list[Path]:
        """See `other.Writer`."""
        batch = torch.export.Dim("n", min=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own
            program = torch.export.export(network, (torch.rand(2, *shape),), dynamic_shapes=({0: batch},))
            torch.export.save(program, path)
        return [path]

    def open(self, path: Path, threads: int) -> Callable[[Images], Logits]:
        """See `other.Writer`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            network = torch.export.load(path).module()

        def run(images: Images) -> Logits:
            with torch.no_grad():
                logits: Logits = network(torch.from_numpy(images)).numpy()
            return logits

        return run

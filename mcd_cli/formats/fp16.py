"""ONNX with 16-bit weights and arithmetic; images and logits stay float32."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import nn

from mcd_cli.formats.onnx_file import run_onnx
from mcd_cli.ladder.session import Images, Logits, cpu_session


class Fp16:
    """Half the size; faster only where the processor or the GPU computes in 16 bits."""

    tolerance = 0.02
    max_drop = 0.002  # by rounding, single images near a boundary change their class

    def write(self, network: nn.Module, onnx_file: bytes, shape: tuple[int, ...], path: Path) -> list[Path]:
        """See `other.Writer`."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values too small for 16 bits, which become the smallest
            model = OnnxModel(convert_float_to_float16(onnx.load_from_string(onnx_file), keep_io_types=True))
        model.topological_sort()  # the converter appends its casts
        document = model.model
        onnx.checker.check_model(document, full_check=True)
        path.write_bytes(document.SerializeToString(deterministic=True))
        return [path]

    def open(self, path: Path, threads: int) -> Callable[[Images], Logits]:
        """See `other.Writer`."""
        return partial(run_onnx, cpu_session(path, threads))

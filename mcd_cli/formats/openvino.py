"""OpenVINO's intermediate representation: an .xml, which is the file, and a .bin of the same name beside it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import nn

from mcd_cli.ladder.session import Images, Logits


class OpenVino:
    """float32 weights, as in the ONNX file that it is converted from."""

    tolerance = 1e-4
    max_drop = 0.0

    def write(self, network: nn.Module, onnx: bytes, shape: tuple[int, ...], path: Path) -> list[Path]:
        """See `other.Writer`."""
        import openvino

        source = path.with_suffix(".onnx")
        source.write_bytes(onnx)
        try:
            openvino.save_model(openvino.convert_model(source), path, compress_to_fp16=False)
        finally:
            source.unlink()
        return [path, path.with_suffix(".bin")]

    def open(self, path: Path, threads: int) -> Callable[[Images], Logits]:
        """See `other.Writer`. In float32: OpenVINO would compute in bf16 where the processor can."""
        import openvino

        hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        compiled = openvino.Core().compile_model(path, "CPU", hints)
        output = compiled.output(0)

        def run(images: Images) -> Logits:
            return np.array(compiled({"images": images})[output], dtype=np.float32)

        return run

"""Quantises a student's ONNX file to int8 with training images, and checks its accuracy on val."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from mcd_cli.ladder.schema import Timing
from mcd_cli.ladder.session import Images, cpu_session
from mcd_cli.quantities import show_ms

NUM_CALIBRATION = 512  # training images
BATCH = 64

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Int8Gate:
    """The int8 check: both files in onnxruntime on the same val images. Accuracies and drops are fractions."""

    float32: float
    int8: float
    num_images: int
    max_drop: float  # a fraction

    @property
    def drop(self) -> float:
        """The accuracy that int8 loses; negative if int8 is better."""
        return self.float32 - self.int8

    @property
    def passed(self) -> bool:
        # Compared in whole images, because 0.25 - 0.24 > 0.01 in floating point.
        return round(self.drop * self.num_images) <= self.max_drop * self.num_images + 1e-9

    def __str__(self) -> str:
        points = f"{100 * abs(self.drop):.2f} points"
        change = f"{points} {'lost' if self.drop > 0 else 'gained'}" if self.drop else "no change"
        return f"int8 {self.int8:.2%}, float32 {self.float32:.2%} on val ({self.num_images:,} images): {change}"


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self.batches: Iterator[Images] = iter([images[i : i + BATCH] for i in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, Images] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch}


def quantise(content: bytes, calibration: Images) -> bytes:
    """Quantise an ONNX file to int8 weights (per channel) and 8-bit activations in QDQ format, with its metadata.

    calibration: training images without augmentation, in the file's input format. Weights use 7 bits (reduce_range):
    with 8 bits, processors without VNNI saturate within a sum, and the outputs would depend on the machine.
    """
    with tempfile.TemporaryDirectory() as folder, _quietly():
        plain, prepared, quantised = (str(Path(folder, f"{name}.onnx")) for name in ("plain", "prepared", "int8"))
        Path(plain).write_bytes(content)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            quantised,
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        document = onnx.load(quantised)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    del document.metadata_props[:]  # written by the quantiser
    for key, value in sorted(metadata.items()):
        document.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(document, full_check=True)
    return bytes(document.SerializeToString(deterministic=True))


def check_int8(float32: bytes, int8: bytes, batches: Iterable[tuple[Images, Labels]], max_drop: float) -> Int8Gate:
    """Run both files on the same val batches and compare their accuracies; max_drop: a fraction."""
    sessions = [cpu_session(content, 1) for content in (float32, int8)]
    num_correct, num_images = [0, 0], 0
    for images, labels in batches:
        for i, session in enumerate(sessions):
            (logits,) = session.run(["logits"], {"images": images})
            num_correct[i] += int((logits.argmax(axis=1) == labels).sum())
        num_images += len(labels)
    return Int8Gate(num_correct[0] / num_images, num_correct[1] / num_images, num_images, max_drop)


def speed(float32: Timing, int8: Timing) -> str:
    """`int8 0.31ms, float32 0.40ms at p50, batch 1: 1.29 times as fast`, or by how much it is slower."""
    ratio = float32.p50_ms / int8.p50_ms
    comparison = f"{ratio:.2f} times as fast" if ratio >= 1 else f"SLOWER, {1 / ratio:.2f} times the time"
    times = f"int8 {show_ms(int8.p50_ms, 3)}, float32 {show_ms(float32.p50_ms, 3)}"
    return f"{times} at p50, batch {int8.batch}: {comparison}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Silences the quantiser, which writes advice to the root logger and to stdout, where our own output goes."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)

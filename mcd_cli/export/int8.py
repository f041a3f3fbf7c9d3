"""A student's ONNX file as int8, calibrated on training images, judged by its accuracy on V."""

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
    """int8 against float32, both in onnxruntime on the same images of V; accuracies are fractions."""

    float32: float
    int8: float
    num_images: int
    max_drop: float  # a fraction

    @property
    def drop(self) -> float:
        """Above 0 where int8 is worse."""
        return self.float32 - self.int8

    @property
    def passed(self) -> bool:
        # In whole images: 0.25 - 0.24 is above 0.01 in floating point.
        return round(self.drop * self.num_images) <= self.max_drop * self.num_images + 1e-9

    def __str__(self) -> str:
        change = (
            f"{100 * abs(self.drop):.2f} points {'lost' if self.drop > 0 else 'gained'}" if self.drop else "as good"
        )
        return f"{self.int8:.2%} on V for {self.float32:.2%} ({self.num_images:,} images): {change}"


class _Images(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, images: Images) -> None:
        self.parts: Iterator[Images] = iter([images[i : i + BATCH] for i in range(0, len(images), BATCH)])

    def get_next(self) -> dict[str, Images] | None:
        part = next(self.parts, None)
        return None if part is None else {"images": part}


def quantise(content: bytes, calibration: Images) -> bytes:
    """The document with int8 weights (per channel) and 8-bit activations, as QDQ; its metadata is kept.

    calibration: training images, un-augmented, as the document takes them. Weights have 7 bits (reduce_range):
    with 8, processors without VNNI saturate in the middle of a sum, and the file's function would depend on the
    machine.
    """
    with tempfile.TemporaryDirectory() as folder, _quietly():
        plain, prepared, done = (str(Path(folder, f"{name}.onnx")) for name in ("plain", "prepared", "done"))
        Path(plain).write_bytes(content)
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            done,
            _Images(calibration),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        document = onnx.load(done)
    metadata = {entry.key: entry.value for entry in onnx.load_from_string(content).metadata_props}
    del document.metadata_props[:]  # the quantiser's own
    for key, value in sorted(metadata.items()):
        document.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(document, full_check=True)
    return bytes(document.SerializeToString(deterministic=True))


def check_int8(float32: bytes, int8: bytes, batches: Iterable[tuple[Images, Labels]], max_drop: float) -> Int8Gate:
    """Both files on the same batches of V."""
    sessions = [cpu_session(content, 1) for content in (float32, int8)]
    right, seen = [0, 0], 0
    for images, labels in batches:
        for i, session in enumerate(sessions):
            (logits,) = session.run(["logits"], {"images": images})
            right[i] += int((logits.argmax(axis=1) == labels).sum())
        seen += len(labels)
    return Int8Gate(right[0] / seen, right[1] / seen, seen, max_drop)


def speed(float32: Timing, int8: Timing) -> str:
    """`int8 0.31ms, float32 0.40ms at p50, batch 1: 1.29 times as fast`, or slower where it is slower."""
    ratio = float32.p50_ms / int8.p50_ms
    word = f"{ratio:.2f} times as fast" if ratio >= 1 else f"SLOWER, {1 / ratio:.2f} times the time"
    times = f"int8 {show_ms(int8.p50_ms, 3)}, float32 {show_ms(float32.p50_ms, 3)}"
    return f"{times} at p50, batch {int8.batch}: {word}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """The quantiser advises and reports on the root logger and on stdout; stdout is ours."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.setLevel(level)

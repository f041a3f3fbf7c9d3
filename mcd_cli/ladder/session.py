"""A student's ONNX file in onnxruntime, with its preprocessing and class names: no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mcd_cli.errors import UserError, reason_of
from mcd_cli.ladder.schema import MAX_TEMPERATURE, MIN_TEMPERATURE, is_temperature

if TYPE_CHECKING:
    import onnxruntime

Images = npt.NDArray[np.float32]  # [n, 3, H, W]
Logits = npt.NDArray[np.float32]  # [n, C]


@dataclass(frozen=True)
class Guess:
    """A class and its probability: softmax(z / T), or softmax(z) where there is no temperature."""

    label: str
    probability: float


@dataclass(frozen=True)
class Session:
    """A classifier ready to label image files.

    run: RGB float32 [n, 3, H, W] in [0, 1] → the file's logits [n, C], whatever normalisation it takes.
    temperature: what `predict` divides them by, in addition to what a calibrated file has divided; None: as 1.
    """

    run: Callable[[Images], Logits]
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]  # 3, H, W
    temperature: float | None = None

    def predict(self, images: str | Path | Sequence[str | Path], top: int = 1) -> list[list[Guess]]:
        """The `top` likeliest classes of each image file, best first.

        Raises UserError naming the first file that is not a readable image.
        """
        paths = [images] if isinstance(images, str | Path) else list(images)
        guesses = []
        for start in range(0, len(paths), 64):
            logits = self.run(np.stack([self.read(path) for path in paths[start : start + 64]])).astype(np.float64)
            odds = np.exp((logits - logits.max(axis=1, keepdims=True)) / (self.temperature or 1.0))
            for z, p in zip(logits, odds / odds.sum(axis=1, keepdims=True), strict=True):
                best = np.argsort(-z, kind="stable")[:top]
                guesses.append([Guess(self.classes[i], float(p[i])) for i in best])
        return guesses

    def read(self, path: str | Path) -> Images:
        """An image file, prepared as in training: [3, H, W] in [0, 1], shorter side to H, centre crop."""
        from mcd_cli.data.images import BadImage, read_file

        try:
            pixels = read_file(path, self.input_shape[1])
        except OSError as error:
            raise UserError(f"cannot read image {str(path)!r}: {error.strerror or error}") from None
        except BadImage as error:
            raise UserError(f"cannot read image {str(path)!r}: {error}; is it an image?") from None
        return pixels.astype(np.float32) / np.float32(255)


def open_session(path: Path, *, threads: int = 1, sha256: str | None = None, calibrated: bool = True) -> Session:
    """An ONNX file that `mcd export` wrote; its metadata holds everything that is needed.

    calibrated: predict softmax(z / T), z the raw logits, where the file knows its temperature T; else softmax(z), also
    of a file that divides by T itself. Raises UserError when it cannot be read, has a different sha256 than expected,
    or was not written by `mcd export`.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path} is not the file that was exported (sha256 differs); export it again")
    session = cpu_session(content, threads, str(path))
    try:
        about: dict[str, Any] = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
        classes, shape, inside = tuple(about["classes"]), tuple(about["input_shape"]), about.get("preprocess", True)
        mean, std = (np.array(about[key], dtype=np.float32).reshape(1, 3, 1, 1) for key in ("mean", "std"))
    except (KeyError, ValueError, TypeError):
        raise UserError(f"{path} was not written by `mcd export`: it has no class names or preprocessing") from None
    temperature, has_divided = about.get("temperature"), about.get("calibrated") is True
    if temperature is not None and not (type(temperature) in (int, float) and is_temperature(temperature)):
        raise UserError(f"{path}: its temperature is not a number from {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}")
    if temperature is not None and not calibrated:
        temperature = 1 / temperature
    if calibrated == has_divided:
        temperature = None  # its logits are as wanted

    def run(images: Images) -> Logits:
        (logits,) = session.run(["logits"], {"images": images if inside else (images - mean) / std})
        return np.asarray(logits, dtype=np.float32)

    return Session(run, classes, (shape[0], shape[1], shape[2]), temperature)


def cpu_session(file: Path | bytes, threads: int, name: str = "the ONNX file") -> onnxruntime.InferenceSession:
    """onnxruntime on the CPU with exactly that many threads. Raises UserError for a file that it cannot load."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    source = str(file) if isinstance(file, Path) else file
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an exception class for each fault
        raise UserError(f"{name} cannot be loaded ({reason_of(error)}); export it again") from None

"""A student's ONNX file in onnxruntime, with its preprocessing and class names: no torch."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mcd_cli.errors import UserError, reason_of
from mcd_cli.ladder.schema import MAX_TEMPERATURE, MIN_TEMPERATURE, is_temperature

if TYPE_CHECKING:
    import onnxruntime

BATCH = 64  # images that are labelled at a time

Images = npt.NDArray[np.float32]  # [n, 3, H, W]
Logits = npt.NDArray[np.float32]  # [n, C]


@dataclass(frozen=True)
class Guess:
    """A class and its probability: softmax(z / T), or softmax(z) where there is no temperature."""

    label: str
    probability: float


@dataclass(frozen=True)
class Labelled:
    """An image file and its likeliest classes, best first; or why it cannot be read."""

    path: str
    top: list[Guess]
    error: UserError | None = None


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

        >>> session.predict(["cat.png", "dog.png"], top=2)[0][0].label
        'cat'
        """
        paths = [images] if isinstance(images, str | Path) else list(images)
        guesses = []
        for labelled in self.label(paths, top):
            if labelled.error is not None:
                raise labelled.error
            guesses.append(labelled.top)
        return guesses

    def label(self, paths: Iterable[str | Path], top: int = 1, *, threads: int = 1) -> Iterator[Labelled]:
        """The `top` likeliest classes of each image file, best first, in their order and as soon as they are known.

        paths: taken 64 at a time. threads: batches that are read and labelled at the same time. A file that cannot be
        read yields its error.
        """
        left, running = iter(paths), deque[Future[list[Labelled]]]()
        with ThreadPoolExecutor(threads) as pool:
            while True:
                batch = list(islice(left, BATCH))
                if batch:
                    running.append(pool.submit(self._label, batch, top))
                elif not running:
                    return
                if len(running) > threads or not batch:
                    yield from running.popleft().result()

    def _label(self, paths: Sequence[str | Path], top: int) -> list[Labelled]:
        read = [self._try_to_read(path) for path in paths]
        images = [image for image in read if not isinstance(image, UserError)]
        guesses = iter(self._guesses(np.stack(images), top) if images else [])
        return [
            Labelled(str(path), [], image) if isinstance(image, UserError) else Labelled(str(path), next(guesses))
            for path, image in zip(paths, read, strict=True)
        ]

    def _guesses(self, images: Images, top: int) -> list[list[Guess]]:
        """images [n, 3, H, W] → `top` classes of each."""
        logits = self.run(images).astype(np.float64)
        odds = np.exp((logits - logits.max(axis=1, keepdims=True)) / (self.temperature or 1.0))
        best = np.argsort(-logits, axis=1, kind="stable")[:, :top]
        return [
            [Guess(self.classes[i], float(p[i])) for i in row]
            for row, p in zip(best, odds / odds.sum(axis=1, keepdims=True), strict=True)
        ]

    def _try_to_read(self, path: str | Path) -> Images | UserError:
        try:
            return self.read(path)
        except UserError as error:
            return error

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

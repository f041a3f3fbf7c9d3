"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels in 17 grey levels; no download.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcd_cli.data.dataset import Decoded, Request, measured
from mcd_cli.data.images import resized
from mcd_cli.data.splits import Part

SIDE = 16


def read(request: Request) -> Decoded:
    """The digits as RGB, 16x16 or image_size; bilinear upscaling keeps the soft edges of the strokes."""
    levels, labels = shipped()
    grey = np.rint(levels * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[:, None], 3, axis=1)
    images = resized(images, request.image_size or SIDE)
    parts = np.full(len(labels), Part.ANY, dtype=np.uint8)
    decoded = measured(tuple("0123456789"), images, labels, parts)
    return replace(decoded, held_out=(0.15, 0.25))


def shipped() -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Grey levels 0 to 16, [1797, 8, 8], and labels, read from scikit-learn's file: its import takes half a second."""
    package = find_spec("sklearn")
    path = None if package is None or package.origin is None else Path(package.origin).parent
    if path is not None and (file := path / "datasets" / "data" / "digits.csv.gz").is_file():
        table = np.loadtxt(file, delimiter=",")
        return table[:, :-1].reshape(-1, 8, 8), table[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return bunch.images, bunch.target.astype(np.int64)

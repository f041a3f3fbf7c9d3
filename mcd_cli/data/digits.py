"""scikit-learn's handwritten digits: 1,797 real images of 8x8 pixels in 17 grey levels; no download.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from mcd_cli.data.dataset import Decoded, Request, measured
from mcd_cli.data.images import resized
from mcd_cli.data.splits import Part

SIDE = 16


def read(request: Request) -> Decoded:
    """The digits as RGB of 16x16 (or image_size): bilinear upscaling, so strokes keep their soft edges."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)  # levels 0..16
    images = np.repeat(grey[:, None], 3, axis=1)
    images = resized(images, request.image_size or SIDE)
    labels = bunch.target.astype(np.int64)
    parts = np.full(len(labels), Part.ANY, dtype=np.uint8)
    decoded = measured(tuple("0123456789"), images, labels, parts)
    return replace(decoded, held_out=(0.15, 0.25))

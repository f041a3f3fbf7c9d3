"""Decodes image files to square uint8 RGB arrays as torchvision does: with PIL, dropping alpha, ignoring EXIF."""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from mcd_cli.data.cache import Chunk, cached
from mcd_cli.data.dataset import Decoded, Request
from mcd_cli.data.listing import File, Listing, file_at, picture_formats
from mcd_cli.errors import UserError, reason_of

MIXED_SIDE = 64  # pixels; used if the images have no common square size and image_size is unset
MAX_PIXELS = 89_478_485  # PIL's own limit, a quarter of a GiB of RGB
CHUNK_BYTES = 64 * 2**20
REPORT_EVERY = 5.0  # seconds
SMALL_BYTES = 2**15  # per file; decoding smaller files is mostly Python code, which threads only slow down

LARGE_PIXELS = 2**24  # larger images are decoded one at a time: one per thread could exhaust the memory
_LARGE = threading.Lock()

Pixels = npt.NDArray[np.uint8]


class BadImage(Exception):
    """An image file that cannot be decoded, and why."""


class MixedSizes(Exception):
    """The images do not share one square size."""


def decode(listing: Listing, request: Request) -> Decoded:
    """Decode the listed images, or take them from the cache.

    Raises UserError that names the first unreadable image, unless bad images are skipped.
    """
    key = ("images", listing.digest(), str(request.image_size), str(request.skip_bad_images))

    def build(side: int | None, notes: list[str]) -> Decoded:
        return cached(
            key,
            listing.classes,
            lambda: _chunks(listing, side, request, notes),
            notes,
            request.report,
            request.max_bytes,
        )

    try:
        return build(request.image_size, [])
    except MixedSizes:
        side = MIXED_SIDE
        note = f"the images differ in size: resized and cropped to {side}x{side} (change it with --image-size)"
        return build(side, [note])


def _chunks(listing: Listing, side: int | None, request: Request, notes: list[str]) -> Iterator[Chunk]:
    files = listing.files
    bad: list[str] = []
    with _without_warnings(), ThreadPoolExecutor(_num_threads()) as pool:
        run = pool.map if sum(file.size for file in files) > SMALL_BYTES * len(files) else map
        attempt = partial(_attempt, root=listing.root, side=side or _first_side(listing), exact=side is None)
        request.report(f"decoding {len(files)} images (once; later runs use the cache)")
        last_report = time.monotonic()
        length = max(1, min(1024, CHUNK_BYTES // (3 * attempt.keywords["side"] ** 2)))
        for start in range(0, len(files), length):
            window = range(start, min(start + length, len(files)))
            good, pixels = [], []
            for index, result in zip(window, run(attempt, files[start : window.stop]), strict=True):
                if not isinstance(result, BadImage):
                    good.append(index)
                    pixels.append(result)
                elif request.skip_bad_images:
                    bad.append(files[index].path)
                else:
                    name = files[index].path
                    raise UserError(
                        f"cannot read image {name!r} in {str(listing.root)!r}: {result}; "
                        "repair or remove it, or use --skip-bad-images"
                    )
            if good:
                yield Chunk(np.stack(pixels), listing.labels[good], listing.parts[good])
            if time.monotonic() - last_report > REPORT_EVERY:
                last_report = time.monotonic()
                request.report(f"  {window.stop} of {len(files)} decoded")
    if bad:
        first = ", ".join(repr(name) for name in bad[:3]) + (", ..." if len(bad) > 3 else "")
        notes.append(f"skipped {len(bad)} of {len(files)} images, which cannot be read: {first}")


@contextmanager
def _without_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        # PIL warns about odd metadata such as EXIF, which is not used here.
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _open checks the size itself
        yield


def _num_threads() -> int:
    return min(32, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _first_side(listing: Listing) -> int:
    for file in listing.files:
        try:
            if file.size >= 0:
                with _open(listing.root / file.path) as image:
                    if image.width != image.height:
                        raise MixedSizes
                    return image.width
        except BadImage:
            continue
    return 1  # every image is bad, which decoding will report


def _attempt(file: File, root: Path, side: int, exact: bool) -> Pixels | BadImage:
    path = root / file.path
    try:
        if file.size < 0:
            raise BadImage("broken link or not a regular file")
        with _open(path) as image:
            if exact and image.size != (side, side):
                raise MixedSizes
            with _LARGE if image.width * image.height > LARGE_PIXELS else nullcontext():
                pixels = read(image, side)
        if file_at(path, file.path) != file:
            raise BadImage("it changed while it was read")
        return pixels
    except BadImage as error:
        return error


def read_file(path: str | Path, side: int) -> Pixels:
    """One image file as uint8 [3, side, side]. Raises BadImage, or OSError if the file cannot be read."""
    with _without_warnings(), Path(path).open("rb"), _open(Path(path)) as image:
        return read(image, side)


def _open(path: Path) -> Image.Image:
    """The image with its header read; raises BadImage."""
    try:
        image = Image.open(path, formats=picture_formats())
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise BadImage("it is empty" if _is_empty(path) else "not in an image format that PIL can read") from None
    except Image.DecompressionBombError:
        raise BadImage(f"it has more than {MAX_PIXELS} pixels") from None
    except Exception as error:  # decoders can raise anything for a damaged file
        raise BadImage(reason_of(error)) from None
    if image.width * image.height > MAX_PIXELS:
        image.close()
        raise BadImage(f"it has {image.width}x{image.height}, more than {MAX_PIXELS} pixels")
    return image


def _is_empty(path: Path) -> bool:
    try:
        return path.stat().st_size == 0
    except OSError:  # it was deleted in the meantime
        return False


def read(image: Image.Image, side: int) -> Pixels:
    """An opened image as uint8 [3, side, side]. Raises BadImage."""
    try:
        return np.asarray(square(to_rgb(image), side)).transpose(2, 0, 1)
    except (MemoryError, BadImage):
        raise
    except Exception as error:  # as above
        raise BadImage(reason_of(error)) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert any PIL mode to RGB: alpha is dropped, not composited, as in torchvision's loader; 16 bits are scaled.

    Raises BadImage for pixels of unknown range.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise BadImage("its integer pixels are outside 0..65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise BadImage("it has floating-point pixels, whose range is unknown")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # PIL recommends it; the colours come from the palette either way
    return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """Resize the shorter side to `side` (bilinear, antialiased) and take the centre crop, as torchvision does.

    Reference scripts resize to 256/224 of the crop for evaluation. The cached copy is also used for training, whose
    augmentation crops again, so it keeps the whole shorter side.
    """
    width, height = image.size
    if (width, height) == (side, side):
        return image
    short = min(width, height)
    # Cropping while resizing gives the same pixels without ever storing the enlarged long side.
    new_width, new_height = int(side * width / short), int(side * height / short)
    left, top = round((new_width - side) / 2), round((new_height - side) / 2)
    box = (
        left * width / new_width,
        top * height / new_height,
        (left + side) * width / new_width,
        (top + side) * height / new_height,
    )
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def resized(images: Pixels, side: int) -> Pixels:
    """Resize uint8 [n, 3, H, W] to [n, 3, side, side] with `square`."""
    if images.shape[2:] == (side, side):
        return images
    rows = [np.asarray(square(Image.fromarray(np.ascontiguousarray(i.transpose(1, 2, 0))), side)) for i in images]
    return np.ascontiguousarray(np.stack(rows).transpose(0, 3, 1, 2))

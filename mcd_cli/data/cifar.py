"""CIFAR-10 and CIFAR-100, from the official archives or from a copy as an image folder.

A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mcd_cli.data import folder, images
from mcd_cli.data.archive import unpacked
from mcd_cli.data.cache import Chunk, cached
from mcd_cli.data.cifar_pickle import load_pickle
from mcd_cli.data.dataset import Decoded, Request
from mcd_cli.data.download import Download, downloads, fetch
from mcd_cli.data.listing import stamp
from mcd_cli.data.splits import Part
from mcd_cli.errors import UserError
from mcd_cli.norms import NORMS, RGB

PIXELS = 3 * 32 * 32  # bytes per image: the red, green and blue planes, each row by row


@dataclass(frozen=True)
class Layout:
    """One of the official file formats."""

    archive: str
    folder: str
    files: Mapping[str, tuple[Part, int]]  # name -> its part and number of images

    def lies_in(self, place: Path) -> bool:
        """Whether the folder contains at least one of the files."""
        return any((place / name).is_file() for name in self.files)


@dataclass(frozen=True)
class Cifar:
    """The properties in which CIFAR-10 and CIFAR-100 differ."""

    title: str
    download: Download
    binary: Layout
    python: Layout
    label_bytes: int  # binary format: label bytes before an image's pixels; the last one is the class
    label_key: bytes  # python format: key of the class labels
    classes: tuple[str, ...]
    norm: tuple[RGB, RGB]


def read_cifar10(request: Request) -> Decoded:
    """CIFAR-10: 50,000 training and 10,000 test images of 32x32 pixels in 10 classes."""
    return read(CIFAR10, request)


def read_cifar100(request: Request) -> Decoded:
    """CIFAR-100: 50,000 training and 10,000 test images of 32x32 pixels in 100 (fine) classes."""
    return read(CIFAR100, request)


def read(cifar: Cifar, request: Request) -> Decoded:
    """Read the data set from the data root; without a data root, download it if necessary.

    Raises UserError if the data root has no copy or an incomplete one.
    """
    layout, place = find(cifar, request)
    if layout is None:
        listing = folder.listing(replace(request, root=place))
        if listing.classes != cifar.classes:
            mismatch = sorted(set(listing.classes) ^ set(cifar.classes))[0]
            raise UserError(f"the classes in {str(place)!r} are not those of {cifar.title} (see {mismatch!r})")
        return replace(images.decode(listing, request), norm=cifar.norm)
    for name in layout.files:
        if not (place / name).is_file():
            raise UserError(f"{cifar.title} in {str(place)!r} lacks the file {name!r}; unpack the archive again")
    key = (cifar.title, str(request.image_size), *(stamp(place / name) for name in layout.files))
    decoded = cached(
        key, cifar.classes, lambda: _chunks(cifar, layout, place, request), [], request.report, request.max_bytes
    )
    return replace(decoded, norm=cifar.norm)


def find(cifar: Cifar, request: Request) -> tuple[Layout | None, Path]:
    """The layout (None for an image folder) and folder of a copy. Raises UserError if there is none."""
    root = downloads() if request.root is None else request.root
    layouts = (cifar.binary, cifar.python)
    if root.is_file():
        return _inside(cifar, root, request)
    for layout in layouts:
        for place in (root, root / layout.folder):
            if layout.lies_in(place):
                return layout, place
    for layout in layouts:
        if (root / layout.archive).is_file():
            return _inside(cifar, root / layout.archive, request)
    if (root / "train").is_dir() and (root / "test").is_dir():
        return None, root
    if request.root is None:
        return _inside(cifar, fetch(cifar.download, request.report), request)
    raise UserError(
        f"no {cifar.title} in {str(root)!r}; put {cifar.binary.archive} there, or omit the data root to download it"
    )


def _inside(cifar: Cifar, archive: Path, request: Request) -> tuple[Layout, Path]:
    root = unpacked(archive, request.report)
    for layout in (cifar.binary, cifar.python):
        if layout.lies_in(root / layout.folder):
            return layout, root / layout.folder
    raise UserError(f"archive {str(archive)!r} does not contain {cifar.title}; give the official archive")


def _chunks(cifar: Cifar, layout: Layout, place: Path, request: Request) -> Iterator[Chunk]:
    for name, (part, count) in layout.files.items():
        path = place / name
        before = stamp(path)
        try:
            pixels, labels = _binary(cifar, path, count) if layout is cifar.binary else _python(cifar, path)
        except OSError as error:
            raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
        if stamp(path) != before:
            raise UserError(f"{str(path)!r} changed while it was read; try again")
        if pixels.shape != (count, PIXELS) or labels.shape != (count,):
            raise UserError(f"{str(path)!r} is incomplete or damaged: it must contain {count} images; fetch it again")
        if labels.min() < 0 or labels.max() >= len(cifar.classes):
            raise UserError(f"{str(path)!r} has labels that {cifar.title} does not have; fetch it again")
        for start in range(0, count, 1000):
            block = pixels[start : start + 1000].reshape(-1, 3, 32, 32)
            if request.image_size is not None:
                block = images.resized(block, request.image_size)
            yield Chunk(block, labels[start : start + 1000], np.full(len(block), part, dtype=np.uint8))


Records = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]  # pixels [n, 3072], labels [n]


def _binary(cifar: Cifar, path: Path, count: int) -> Records:
    length = cifar.label_bytes + PIXELS
    values = np.fromfile(path, dtype=np.uint8, count=count * length + 1)  # + 1 detects a file that is too long
    if len(values) % length:
        return values[:0].reshape(0, PIXELS), np.zeros(0, dtype=np.int64)
    records = values.reshape(-1, length)
    return records[:, cifar.label_bytes :], records[:, cifar.label_bytes - 1].astype(np.int64)


def _python(cifar: Cifar, path: Path) -> Records:
    batch = load_pickle(path)
    data, labels = batch.get(b"data"), batch.get(cifar.label_key)
    # exactly these types: nested lists in a pickle can share memory and expand to a huge array
    if isinstance(data, np.ndarray) and isinstance(labels, list) and all(map(_is_label, labels)):
        return data, np.array(labels, dtype=np.int64)
    raise UserError(f"{str(path)!r} is not a batch of {cifar.title}; fetch it again")


def _is_label(value: object) -> bool:
    return type(value) is int and 0 <= value < 256


def _batches(suffix: str) -> dict[str, tuple[Part, int]]:
    names = {f"data_batch_{i}{suffix}": (Part.TRAIN, 10_000) for i in range(1, 6)}
    return names | {f"test_batch{suffix}": (Part.TEST, 10_000)}


SITE = "https://www.cs.toronto.edu/~kriz/"
CIFAR10 = Cifar(
    title="CIFAR-10",
    download=Download(f"{SITE}cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530"),
    binary=Layout("cifar-10-binary.tar.gz", "cifar-10-batches-bin", _batches(".bin")),
    python=Layout("cifar-10-python.tar.gz", "cifar-10-batches-py", _batches("")),
    label_bytes=1,
    label_key=b"labels",
    classes=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    norm=NORMS["cifar10"],
)
CIFAR100_CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = Cifar(
    title="CIFAR-100",
    download=Download(f"{SITE}cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8"),
    binary=Layout(
        "cifar-100-binary.tar.gz",
        "cifar-100-binary",
        {"train.bin": (Part.TRAIN, 50_000), "test.bin": (Part.TEST, 10_000)},
    ),
    python=Layout(
        "cifar-100-python.tar.gz",
        "cifar-100-python",
        {"train": (Part.TRAIN, 50_000), "test": (Part.TEST, 10_000)},
    ),
    label_bytes=2,  # coarse, fine
    label_key=b"fine_labels",
    classes=tuple(CIFAR100_CLASSES.split()),
    norm=NORMS["cifar100"],
)

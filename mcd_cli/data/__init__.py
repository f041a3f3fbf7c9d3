"""Loads data sets by name, decodes, splits and augments them. The table is torch-free; `load_dataset` imports a reader.

To add a data set, write a reader that returns `Decoded` and add a row below; splits and augmentation need only seeds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mcd_cli.errors import UserError, unknown
from mcd_cli.files import as_path
from mcd_cli.registry import Row, Table

if TYPE_CHECKING:
    from mcd_cli.data.dataset import Dataset


@dataclass(frozen=True)
class DatasetSpec(Row):
    """Describes a data set without importing its reader; summary: one line, for `mcd list`."""

    summary: str


DATASETS = Table(
    "data set",
    {
        "numbers": DatasetSpec("mcd_cli.data.numbers:read", "4,500 numbers 00 to 99, 16×16, of scikit-learn's digits"),
        "digits": DatasetSpec("mcd_cli.data.digits:read", "1,797 digits of 10 classes, 16×16, from scikit-learn"),
        "cifar10": DatasetSpec("mcd_cli.data.cifar:read_cifar10", "60,000 photos of 10 classes, 32×32"),
        "cifar100": DatasetSpec("mcd_cli.data.cifar:read_cifar100", "60,000 photos of 100 classes, 32×32"),
        "tinyimagenet": DatasetSpec("mcd_cli.data.tiny_imagenet:read", "110,000 photos of 200 classes, 64×64"),
    },
)


TABLES = (".csv", ".tsv", ".jsonl")
"""Endings of files that list paths and labels (`table.read`)."""


def to_stderr(line: str) -> None:
    """Print a progress line to stderr."""
    print(line, file=sys.stderr)


def find_folder(name: str, data_root: str | None = None) -> Path | None:
    """None for a built-in name, otherwise the folder or the table of that name (data_root is searched first).

    A built-in name takes precedence; write `./cifar100` for a folder. Raises UserError if the name is neither.
    """
    if name in DATASETS:
        return None
    path = as_path(table_and_columns(name)[0])
    places = [path] if data_root is None else [as_path(data_root) / path, path]
    for place in places:
        if name and place.is_dir():
            return place
        if name and place.is_file() and place.suffix.lower() in TABLES:
            return place
        if name and place.exists():
            raise UserError(f"data set {name!r} is a file; unpack it and give the folder")
    if "/" in name:
        raise UserError(f"data set folder {name!r} does not exist")
    raise UserError(f"{unknown('data set', name, DATASETS)} (there is no folder of that name either)")


def table_and_columns(name: str) -> tuple[str, tuple[str, ...]]:
    """`labels.csv:photo,kind` → the file, and the columns of paths, labels and splits that are named."""
    file, colon, columns = name.rpartition(":")
    if not colon or not file.lower().endswith(TABLES):
        return name, ()
    return file, tuple(column.strip() for column in columns.split(","))


def load_dataset(
    name: str,
    *,
    data_root: str | None = None,
    image_size: int | None = None,
    split_seed: int = 0,
    label_noise: float = 0.0,
    skip_bad_images: bool = False,
    max_memory: int | None = None,
    report: Callable[[str], None] = to_stderr,
) -> Dataset:
    """Load a built-in data set, a folder of images or a table of their paths, decoded, split and ready to index.

    data_root: folder with a built-in data set's files (None: the downloads in the cache folder).
    image_size: side length in pixels of the square images; None keeps the data set's own.
    label_noise: fraction in [0, 1) of the training labels replaced by another class; val and test keep their labels.
    max_memory: bytes of images held in memory; larger data sets are memory-mapped (None: half of the free memory).
    report: called with progress and explanations, one line each.

    Raises UserError for a wrong name, option or file, and RunFailed if a download or the cache fails.
    """
    if image_size is not None and image_size < 1:
        raise UserError(f"image size {image_size} is not a positive number of pixels")
    if not 0 <= label_noise < 1:
        raise UserError(f"label noise {label_noise} is out of range; give a fraction in [0, 1)")
    folder = find_folder(name, data_root)

    from mcd_cli.data import memory
    from mcd_cli.data.dataset import Request, assemble

    max_bytes = memory.available() // 2 if max_memory is None else max_memory
    if folder is None:
        root = None if data_root is None else as_path(data_root)
        decoded = DATASETS.load(name)(Request(root, image_size, skip_bad_images, report, max_bytes))
    else:
        from mcd_cli.data import table
        from mcd_cli.data.folder import read
        from mcd_cli.data.listing import check_text

        request = Request(folder, image_size, skip_bad_images, report, max_bytes)
        columns = table_and_columns(name)[1]
        name = os.path.basename(os.path.realpath(folder)) or "folder"
        check_text(name, str(folder))
        decoded = read(request) if folder.is_dir() else table.read(request, columns)
    return assemble(name, decoded, split_seed=split_seed, label_noise=label_noise)

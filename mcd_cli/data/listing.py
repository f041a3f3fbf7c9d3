"""Lists the image files of a folder without opening them: one scandir per folder, one stat per file."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from mcd_cli.errors import UserError

# Formats that PIL can open but that are not pictures, or that need another program (EPS needs Ghostscript).
NOT_PICTURES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
# Files that often accompany images and can be ignored silently.
COMPANIONS = {
    ".bin", ".cfg", ".csv", ".db", ".gz", ".htm", ".html", ".ini", ".json", ".jsonl", ".lock", ".log",
    ".mat", ".md", ".npy", ".npz", ".parquet", ".pdf", ".pickle", ".pkl", ".py", ".rst", ".tar", ".toml",
    ".tsv", ".txt", ".url", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip


MAX_VISITS = 100  # of one folder below one class; a few links to each other create endlessly many paths


class File(NamedTuple):
    """An image file: its path relative to the listing's root; size is -1 if it is not a readable regular file."""

    path: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Listing:
    """The image files of a data set in their final order, with their labels and parts."""

    root: Path
    classes: tuple[str, ...]
    files: list[File]
    labels: npt.NDArray[np.int64]  # [N]
    parts: npt.NDArray[np.uint8]  # [N], splits.Part

    def digest(self) -> str:
        """sha256 of the files' paths, sizes, modification times, labels and parts."""
        digest = hashlib.sha256(os.fsencode(self.root.resolve()))
        digest.update("\0".join(("", *self.classes, "")).encode())
        for path, size, mtime_ns in self.files:
            digest.update(b"%b\0%d %d\0" % (os.fsencode(path), size, mtime_ns))
        digest.update(self.labels.tobytes())
        digest.update(self.parts.tobytes())
        return digest.hexdigest()


@dataclass
class Walk:
    """Walks through folders and remembers the files it ignored, so that they can be reported."""

    root: Path
    ignored: list[str] = field(default_factory=list)

    def subfolders(self, folder: str = "") -> list[str]:
        """Names of the visible folders directly inside, sorted."""
        return sorted(e.name for e in self._scan(folder) if not _hidden(e.name) and _is_folder(e))

    def images(self, folder: str, deep: bool = True) -> list[File]:
        """The image files of a folder (with `deep`, also of the folders below it), sorted by path.

        Links are followed. Raises UserError for a link to a folder above itself, and for an unreadable folder.
        """
        images: list[File] = []
        above_folder = [str(parent) for parent in Path(folder, "x").parents]
        pending = [(folder, frozenset(map(self._identity, above_folder)))]
        visits: Counter[tuple[int, int]] = Counter()
        while pending:
            at, above = pending.pop()
            for entry in self._scan(at):
                path = os.path.join(at, entry.name)
                if _hidden(entry.name):
                    continue
                if _is_folder(entry):
                    identity = self._identity(path)
                    if identity in above:
                        raise UserError(
                            f"folder {path!r} in {str(self.root)!r} is a link to a folder above itself; remove it"
                        )
                    visits[identity] += 1
                    if visits[identity] > MAX_VISITS:
                        raise UserError(
                            f"links in {str(self.root)!r} reach folder {path!r} by {MAX_VISITS} paths; remove some"
                        )
                    if deep:
                        pending.append((path, above | {identity}))
                    continue
                suffix = os.path.splitext(entry.name)[1].lower()
                if suffix in image_suffixes():
                    images.append(file_at(entry, path))
                elif suffix not in COMPANIONS:
                    self.ignored.append(path)
        return sorted(images)

    def _scan(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:
                yield from entries
        except OSError as error:
            place = os.path.join(self.root, folder)
            raise UserError(f"cannot read folder {place!r}: {error.strerror}") from error

    def _identity(self, folder: str) -> tuple[int, int]:
        place = os.path.join(self.root, folder)
        try:
            status = os.stat(place)
        except OSError as error:
            raise UserError(f"cannot read folder {place!r}: {error.strerror}") from error
        return status.st_dev, status.st_ino


def check_text(name: str, where: str) -> None:
    """Raises UserError for a name that is not UTF-8, because recipes and manifests contain it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise UserError(f"folder {name!r} in {where!r} has a name that is not UTF-8; rename it") from None


def stamp(path: Path) -> str:
    """A file's path, size and modification time, to detect changes. Raises UserError if the file cannot be read."""
    try:
        status = path.stat()
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from None
    return f"{path.resolve()}\0{status.st_size}\0{status.st_mtime_ns}"


@cache
def image_suffixes() -> frozenset[str]:
    """Lower-case suffixes, with the dot, of the picture formats that PIL can open."""
    from PIL import Image

    known = Image.registered_extensions()
    return frozenset(s for s, format in known.items() if format in picture_formats()) - COMPANIONS


@cache
def picture_formats() -> tuple[str, ...]:
    """PIL's names for the picture formats it can open, common ones first, because PIL tries them in this order."""
    from PIL import Image

    Image.init()
    return tuple(sorted(set(Image.OPEN) - NOT_PICTURES, key=lambda name: (name not in ("JPEG", "PNG"), name)))


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in ("Thumbs.db", "__MACOSX", "desktop.ini")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, which will be reported as an unreadable file
        return False


def file_at(entry: os.DirEntry[str] | Path, path: str) -> File:
    """The current state of a file, as an entry named `path` of a listing."""
    try:
        if entry.is_file():  # opening a pipe or a device could block forever
            status = entry.stat()
            return File(path, status.st_size, status.st_mtime_ns)
    except OSError:
        pass  # a broken link is treated as an unreadable image, so that --skip-bad-images applies
    return File(path, -1, 0)

"""Decoded data sets kept under MCD_CACHE: written once, whole or not at all, then read into memory.

What is read is checked against its fingerprint, and a run is not touched by what becomes of the files after that.
A copy that takes more memory than it may is memory-mapped instead, unchecked.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import numpy.typing as npt
from filelock import FileLock

from mcd_cli.data.dataset import Decoded, fingerprint, measured
from mcd_cli.errors import RunFailed, UserError
from mcd_cli.files import as_path

VERSION = 1  # of the files below and of how images are decoded: raise it when either changes
ARRAYS = ("images", "labels", "parts", "moments")


class Chunk(NamedTuple):
    """The next images of a data set, in order."""

    images: npt.NDArray[np.uint8]  # [n, 3, H, W]
    labels: npt.NDArray[np.int64]  # [n]
    parts: npt.NDArray[np.uint8]  # [n]


def cache_root() -> Path:
    """The folder of everything that can be made or fetched again: MCD_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("MCD_CACHE"):
        return as_path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcd"


def cache_folder(name: str) -> Path:
    """A folder of the cache, made if need be; raises UserError where it cannot be written."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"the cache folder {str(folder)!r} cannot be written; set MCD_CACHE to one that can")
    return folder


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Lets one process at a time in; yields False where the file system has no locks."""
    try:
        held = FileLock(path, fallback_to_soft=False).acquire()
    except OSError:
        yield False
        return
    with held:
        yield True


@contextmanager
def new_folder(folder: Path, alone: bool) -> Iterator[Path]:
    """A temporary folder that becomes `folder` when the block ends well, and vanishes otherwise.

    `alone`: nobody else is writing, so what a killed process left is removed. Raises RunFailed where
    the disk is full.
    """
    if alone:
        for stale in folder.parent.glob(f"{folder.name}.tmp-*"):
            shutil.rmtree(stale, ignore_errors=True)
    temporary = Path(tempfile.mkdtemp(prefix=f"{folder.name}.tmp-", dir=folder.parent))
    try:
        yield temporary
        try:
            temporary.rename(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another writer was first: as good
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"no space left in the cache {str(folder.parent)!r}; free some or set MCD_CACHE elsewhere"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def cached(
    key: Sequence[str],
    classes: tuple[str, ...],
    build: Callable[[], Iterator[Chunk]],
    notes: list[str],
    report: Callable[[str], None],
    most: int,
) -> Decoded:
    """The data set of this key from the cache, else built into it; `notes` are told either way.

    most: bytes of images that are read into memory; a larger copy is mapped.
    """
    name = hashlib.sha256("\0".join((str(VERSION), *key)).encode()).hexdigest()[:32]
    folder = cache_root() / "datasets" / name
    decoded = _load(folder, report, most)  # before asking to write: a cache may be given read-only
    if decoded is not None:
        return decoded
    cache_folder("datasets")
    with lock(folder.with_suffix(".lock")) as alone:
        decoded = _load(folder, report, most)  # another process may have been quicker
        if decoded is not None:
            return decoded
        shutil.rmtree(folder, ignore_errors=True)  # there, but torn
        with new_folder(folder, alone) as temporary:
            _write(temporary, classes, build(), notes)
    decoded = _load(folder, report, most)
    if decoded is None:
        raise RunFailed(f"the decoded data set in {str(folder)!r} cannot be read back; delete it and try again")
    return decoded


def _write(folder: Path, classes: tuple[str, ...], chunks: Iterator[Chunk], notes: list[str]) -> None:
    labels: list[npt.NDArray[np.int64]] = []
    parts: list[npt.NDArray[np.uint8]] = []
    shape: tuple[int, ...] = ()
    with (folder / "images.npy").open("wb") as file:
        for chunk in chunks:
            if not labels:
                _header(file, (0, *chunk.images.shape[1:]))
            file.write(np.ascontiguousarray(chunk.images).data)
            labels.append(chunk.labels)
            parts.append(chunk.parts)
            shape = chunk.images.shape[1:]
        if not labels:
            raise UserError("no image of the data set can be read")
        file.seek(0)
        _header(file, (sum(map(len, labels)), *shape))  # numpy pads headers so that the first axis may grow
    images = np.load(folder / "images.npy", mmap_mode="r")
    decoded = measured(classes, images, np.concatenate(labels), np.concatenate(parts))
    for name in ARRAYS[1:]:
        np.save(folder / f"{name}.npy", getattr(decoded, name))
    meta = {"version": VERSION, "classes": classes, "fingerprint": decoded.fingerprint, "notes": notes}
    (folder / "meta.json").write_text(json.dumps(meta))
    for path in folder.iterdir():  # on the disk before the name that vouches for them
        with path.open("r+b") as file:  # Windows syncs only what may be written
            os.fsync(file.fileno())


def _header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _load(folder: Path, report: Callable[[str], None], most: int) -> Decoded | None:
    """None where the folder is not there or not whole: numpy refuses a file shorter than its header says."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        path = folder / "images.npy"
        fits = path.stat().st_size <= most
        images = np.load(path) if fits else _map(path)
        labels, parts, moments = (np.load(folder / f"{name}.npy") for name in ARRAYS[1:])
        decoded = Decoded(tuple(meta["classes"]), images, labels, parts, moments, str(meta["fingerprint"]))
        notes = [str(note) for note in meta["notes"]]
        if fits and fingerprint(decoded.classes, images, labels, parts) != decoded.fingerprint:
            raise ValueError("another fingerprint")
        if len(moments) != len(images):
            raise ValueError("other moments")
    except (OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError):
        report("the decoded copy in the cache is damaged: decoding again")
        return None
    for note in notes:
        report(note)
    return decoded


def _map(path: Path) -> npt.NDArray[np.uint8]:
    """Memory-mapped, copy-on-write, since torch warns of memory that it must not write."""
    mapped: npt.NDArray[np.uint8]
    try:
        mapped = np.load(path, mmap_mode="c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        mapped = np.load(path, mmap_mode="r")  # larger than memory: the system reserves nothing for this one
    return mapped

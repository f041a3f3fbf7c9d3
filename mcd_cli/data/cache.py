"""Caches decoded data sets under MCD_CACHE: written once and atomically, then read into memory.

A cached copy is checked against its fingerprint as it is read, and later changes to its files do not affect the run.
A copy larger than the memory limit is memory-mapped instead, without the check.
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

VERSION = 1  # raise it when the file format or the decoding changes
ARRAYS = ("images", "labels", "parts", "moments")


class Chunk(NamedTuple):
    """The next images of a data set, in order."""

    images: npt.NDArray[np.uint8]  # [n, 3, H, W]
    labels: npt.NDArray[np.int64]  # [n]
    parts: npt.NDArray[np.uint8]  # [n]


def cache_root() -> Path:
    """The folder for files that can be recreated or downloaded again: MCD_CACHE, or the user's cache folder."""
    if chosen := os.environ.get("MCD_CACHE"):
        return as_path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mcd"


def cache_folder(name: str) -> Path:
    """A folder in the cache, created if necessary. Raises UserError if it cannot be written."""
    folder = cache_root() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
    except OSError:
        writable = False
    if not writable:
        raise UserError(f"the cache folder {str(folder)!r} cannot be written; set MCD_CACHE to a writable folder")
    return folder


@contextmanager
def lock(path: Path) -> Iterator[bool]:
    """Admits one process at a time; yields False if the file system does not support locks."""
    try:
        acquired = FileLock(path, fallback_to_soft=False).acquire()
    except OSError:
        yield False
        return
    with acquired:
        yield True


@contextmanager
def new_folder(folder: Path, alone: bool) -> Iterator[Path]:
    """A temporary folder that is renamed to `folder` when the block succeeds, and removed otherwise.

    alone: no other process is writing, so the leftovers of killed processes can be removed. Raises RunFailed if the
    disk is full.
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
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was first; use its folder
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"no space left in the cache {str(folder.parent)!r}; free some space or point MCD_CACHE to another disk"
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
    max_bytes: int,
) -> Decoded:
    """The data set with this key from the cache; it is built first if it is not there. `notes` are always reported.

    max_bytes: limit for images read into memory; a larger copy is memory-mapped.
    """
    name = hashlib.sha256("\0".join((str(VERSION), *key)).encode()).hexdigest()[:32]
    folder = cache_root() / "datasets" / name
    decoded = _load(folder, report, max_bytes)  # before creating folders, because a cache may be read-only
    if decoded is not None:
        return decoded
    cache_folder("datasets")
    with lock(folder.with_suffix(".lock")) as alone:
        decoded = _load(folder, report, max_bytes)  # another process may have been faster
        if decoded is not None:
            return decoded
        shutil.rmtree(folder, ignore_errors=True)  # it may exist but be incomplete
        with new_folder(folder, alone) as temporary:
            _write(temporary, classes, build(), notes)
    decoded = _load(folder, report, max_bytes)
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
            raise UserError("none of the data set's images can be read; check the files")
        file.seek(0)
        _header(file, (sum(map(len, labels)), *shape))  # numpy pads headers so that the first axis can grow
    images = np.load(folder / "images.npy", mmap_mode="r")
    decoded = measured(classes, images, np.concatenate(labels), np.concatenate(parts))
    for name in ARRAYS[1:]:
        np.save(folder / f"{name}.npy", getattr(decoded, name))
    meta = {"version": VERSION, "classes": classes, "fingerprint": decoded.fingerprint, "notes": notes}
    (folder / "meta.json").write_text(json.dumps(meta))
    for path in folder.iterdir():  # the contents must be on disk before the folder gets its final name
        with path.open("r+b") as file:  # Windows can only sync files opened for writing
            os.fsync(file.fileno())


def _header(file: IO[bytes], shape: tuple[int, ...]) -> None:
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})


def _load(folder: Path, report: Callable[[str], None], max_bytes: int) -> Decoded | None:
    """None if the folder is missing or incomplete: numpy rejects a file that is shorter than its header says."""
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_text())
        path = folder / "images.npy"
        fits = path.stat().st_size <= max_bytes
        images = np.load(path) if fits else _map(path)
        labels, parts, moments = (np.load(folder / f"{name}.npy") for name in ARRAYS[1:])
        decoded = Decoded(tuple(meta["classes"]), images, labels, parts, moments, str(meta["fingerprint"]))
        notes = [str(note) for note in meta["notes"]]
        if fits and fingerprint(decoded.classes, images, labels, parts) != decoded.fingerprint:
            raise ValueError("the fingerprint differs")
        if len(moments) != len(images):
            raise ValueError("the number of moments differs")
    except (OSError, ValueError, TypeError, KeyError, EOFError, SyntaxError):
        report("the decoded copy in the cache is damaged; decoding again")
        return None
    for note in notes:
        report(note)
    return decoded


def _map(path: Path) -> npt.NDArray[np.uint8]:
    """Memory-map copy-on-write, because torch warns about read-only memory."""
    mapped: npt.NDArray[np.uint8]
    try:
        mapped = np.load(path, mmap_mode="c")
    except OSError as error:
        if error.errno != errno.ENOMEM:
            raise
        mapped = np.load(path, mmap_mode="r")  # larger than memory; a read-only mapping reserves none
    return mapped

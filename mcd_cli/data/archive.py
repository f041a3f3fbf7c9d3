"""Unpacking archives that others made: nothing leaves the folder, nothing but files, and bounded in size."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO

from mcd_cli.data.cache import cache_folder, cache_root, lock, new_folder
from mcd_cli.data.listing import stamp
from mcd_cli.errors import UserError

MAX_BYTES = 8 * 10**9  # unpacked; the largest official archive makes 0.5 GB
MAX_MEMBERS = 2_000_000
SUFFIXES = (".tar.gz", ".tgz", ".tar", ".zip")

Member = tuple[str, Callable[[], IO[bytes]] | None]  # name, and how to open it (None: a folder)


class Refused(Exception):
    """A member that no honest archive holds."""


def unpacked(archive: Path, report: Callable[[str], None]) -> Path:
    """The folder with the archive's contents in the cache, unpacked if it is not there yet.

    Raises UserError for a broken archive and for one with members that are links or devices, that would
    leave the folder, or that unpack to more than MAX_BYTES.
    """
    name = hashlib.sha256(stamp(archive).encode(errors="surrogateescape")).hexdigest()[:32]
    folder = cache_root() / "unpacked" / name
    if folder.is_dir():
        return folder
    cache_folder("unpacked")
    with lock(folder.with_suffix(".lock")) as alone:
        if not folder.is_dir():
            report(f"unpacking {archive.name}")
            with new_folder(folder, alone) as temporary:
                extract(archive, temporary)
    return folder


def extract(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """The archive's files and folders below `folder`; raises as `unpacked` does."""
    try:
        left = max_bytes
        opened = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)
        for count, (name, open_member) in enumerate(opened):
            if count >= MAX_MEMBERS:
                raise Refused(f"more than {MAX_MEMBERS} members")
            target = folder / _inside(name)
            if open_member is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, target.open("xb") as file:
                while block := source.read(2**20):
                    left -= len(block)
                    if left < 0:
                        raise Refused(f"it unpacks to more than {max_bytes / 1e9:.3g} GB")
                    file.write(block)
    except Refused as error:
        raise UserError(f"archive {str(archive)!r} is refused: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # not the archive's fault
        raise _broken(archive, error) from error
    # RuntimeError and NotImplementedError: encrypted, or a compression Python does not have.
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, ValueError) as error:
        raise _broken(archive, error) from error


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Refused(f"{info.filename!r} is a link or a device")
            yield info.filename, None if info.is_dir() else partial(opened.open, info)


def _tar_members(archive: Path) -> Iterator[Member]:
    with tarfile.open(archive) as opened:
        for info in opened:
            if not (info.isreg() or info.isdir()):
                raise Refused(f"{info.name!r} is a link or a device")
            yield info.name, None if info.isdir() else partial(_reader, opened, info)


def _reader(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = opened.extractfile(info)
    assert source is not None  # a regular file
    return source


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or (os.name == "nt" and ("\\" in name or ":" in name)):
        raise Refused(f"{name!r} would leave the folder")
    return path


def _broken(archive: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split()) or type(error).__name__
    return UserError(f"archive {str(archive)!r} is broken ({reason}); delete it and fetch it again")

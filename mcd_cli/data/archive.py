"""Unpacks untrusted archives safely: only regular files and folders, only inside the target folder, limited in size."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any

from mcd_cli.data.cache import cache_folder, cache_root, lock, new_folder
from mcd_cli.data.listing import stamp
from mcd_cli.errors import UserError, reason_of

MAX_BYTES = 2 * 10**9  # unpacked; the largest official archive unpacks to 0.5 GB
MAX_MEMBERS = 500_000  # the largest official archive has 120,209
MAX_DEPTH = 20  # folders above a member
BLOCK = 2**16  # bytes read at a time, and half the limit for a member's header

Member = tuple[str, Callable[[], IO[bytes]] | None]  # name, and how to open it (None: a folder)


class Refused(Exception):
    """The archive has a member that no legitimate archive contains."""


def unpacked(archive: Path, report: Callable[[str], None]) -> Path:
    """The cache folder with the archive's contents, unpacked on first use.

    Raises UserError for a damaged archive, and for one that contains links or devices, paths outside the folder, or
    more than MAX_BYTES of data.
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
                before = stamp(archive)
                extract(archive, temporary)
                if stamp(archive) != before:
                    raise UserError(f"archive {str(archive)!r} changed while it was read; try again")
    return folder


def extract(archive: Path, folder: Path, max_bytes: int = MAX_BYTES) -> None:
    """Unpack the archive's files and folders into `folder`. Raises UserError as `unpacked` does."""
    try:
        bytes_left = max_bytes
        opened = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)
        for count, (name, open_member) in enumerate(opened):
            if count >= MAX_MEMBERS:
                raise Refused(f"it has more than {MAX_MEMBERS} members")
            target = folder / _inside(name)
            if open_member is None:
                target.mkdir(parents=True, exist_ok=True)
                continue
            if target == folder:
                raise Refused("it contains a file without a name")
            target.parent.mkdir(parents=True, exist_ok=True)
            with open_member() as source, target.open("xb") as file:
                while block := source.read(BLOCK):
                    bytes_left -= len(block)
                    if bytes_left < 0:
                        raise Refused(f"it unpacks to more than {max_bytes / 1e9:.3g} GB")
                    file.write(block)
    except Refused as error:
        raise UserError(f"archive {str(archive)!r} is not safe to unpack ({error}); fetch the official one") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # not the archive's fault
        raise _broken(archive, error) from error
    except Exception as error:  # damaged headers raise many more exceptions than the modules document
        raise _broken(archive, error) from error


def _zip_members(archive: Path) -> Iterator[Member]:
    with zipfile.ZipFile(archive) as opened:
        for info in opened.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise Refused(f"{info.filename!r} is a link or a device")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Refused(f"{info.filename!r} uses an unsupported compression method")
            yield info.filename, None if info.is_dir() else partial(opened.open, info)


def _tar_members(archive: Path) -> Iterator[Member]:
    with archive.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    with gzip.open(archive) if is_gzip else archive.open("rb") as plain:
        tape: Any = _Tape(plain)
        with tarfile.open(fileobj=tape, mode="r:") as opened:
            for info in opened:
                if info.issparse() or not (info.isreg() or info.isdir()):
                    raise Refused(f"{info.name!r} is a link, a device or a sparse file")
                yield info.name, None if info.isdir() else partial(_reader, opened, info)
                vars(opened)["members"].clear()  # tarfile would keep all members in memory


class _Tape:
    """A tar stream that rejects headers which claim a huge size, before reading them, or which point backwards."""

    def __init__(self, file: gzip.GzipFile | IO[bytes]) -> None:
        self.file = file
        self.tell = file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= 2 * BLOCK:
            raise Refused("a header claims an impossible size")
        return self.file.read(size)

    def seek(self, position: int) -> int:
        if position < self.file.tell():  # in a gzip file, going back means unpacking from the start again
            raise Refused("a header points backwards")
        return self.file.seek(position)


def _reader(opened: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    source = opened.extractfile(info)
    assert source is not None  # a regular file
    return source


def _inside(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name or (os.name == "nt" and ("\\" in name or ":" in name)):
        raise Refused(f"{name!r} is outside of the target folder")
    if len(path.parts) > MAX_DEPTH:
        raise Refused(f"{name[:80]!r}... is more than {MAX_DEPTH} folders deep")
    return path


def _broken(archive: Path, error: Exception) -> UserError:
    return UserError(f"archive {str(archive)!r} is damaged ({reason_of(error)}); delete it and fetch it again")

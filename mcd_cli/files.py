"""Files of others are read within limits; ours are either whole or not there: temporary name, sync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path

from mcd_cli.errors import RunFailed, UserError

LONGEST_PATH, LONGEST_NAME = 4000, 255  # bytes; the usual limits of a system and of a file system
BLOCK = 2**20  # bytes written at a time


def as_path(text: str) -> Path:
    """The path that a user, a recipe or a manifest writes, `~` expanded. Raises UserError where it can be none."""
    try:
        written = os.fsencode(text)
        longest = max(map(len, written.split(b"/")))
        if b"\0" in written or len(written) > LONGEST_PATH or longest > LONGEST_NAME:
            raise ValueError
        return Path(text).expanduser()
    except (ValueError, RuntimeError):  # RuntimeError: the home of nobody
        raise UserError(f"{text[:200]!r} is no path; name a file or a folder") from None


def check_regular(path: Path) -> int:
    """Its size in bytes. Raises OSError unless it is a file: a pipe would be waited for, a device has no end."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        raise OSError(errno.EINVAL, "Is a directory" if is_folder else "it is no regular file")
    return status.st_size


def read_small(path: Path, most: int) -> bytes:
    """A file of at most that many bytes. Raises OSError where it is larger, or no file at all."""
    size = check_regular(path)
    if size > most:
        raise OSError(errno.EFBIG, f"{size:,} bytes are more than the {most:,} that such a file may have")
    with path.open("rb") as file:
        return file.read(most)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never half of one.

    Raises RunFailed, with the space needed when the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # a new file: never one that a link of that name points to
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, len(content)) from None


def sweep(folder: Path) -> None:
    """Remove what writers that were killed left under this folder; nobody else may be writing there."""
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, num_bytes: int) -> RunFailed:
    """The one line for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(f"the disk is full: {path} needs {num_bytes:,} bytes; free some space and go on")
    return RunFailed(f"cannot write {path} ({num_bytes:,} bytes): {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut; nothing happens where folders cannot be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folder
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network and foreign file systems
            raise
    finally:
        os.close(descriptor)


def reserve(path: Path, start: int) -> None:
    """Take the disk's space for a file's zeros from `start` on: writing through a mapping cannot say there is none.

    Raises OSError where the disk is full.
    """
    left = path.stat().st_size - start
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), start, left)
            return
        file.seek(start)  # Windows and macOS
        for size in (BLOCK,) * (left // BLOCK) + (left % BLOCK,):
            file.write(bytes(size))


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

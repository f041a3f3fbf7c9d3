"""Files: untrusted ones are read with a size limit; our own are written atomically (temporary name, sync, rename)."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import stat
from pathlib import Path

from mcd_cli.errors import RunFailed, UserError

LONGEST_PATH, LONGEST_NAME = 4000, 255  # bytes; the usual limits of operating systems and of file systems
BLOCK = 2**20  # bytes written at a time


def as_path(text: str) -> Path:
    """A path from the command line, a recipe or a manifest, with `~` expanded. Raises UserError if it is not valid."""
    try:
        written = os.fsencode(text)
        longest = max(map(len, written.split(b"/")))
        if b"\0" in written or len(written) > LONGEST_PATH or longest > LONGEST_NAME:
            raise ValueError
        return Path(text).expanduser()
    except (ValueError, RuntimeError):  # RuntimeError: `~name` of an unknown user
        raise UserError(f"{text[:200]!r} is not a valid path; give a file or a folder") from None


def check_regular(path: Path) -> int:
    """The file's size in bytes. Raises OSError for anything but a regular file: reading a pipe could block forever."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        is_folder = stat.S_ISDIR(status.st_mode)
        raise OSError(errno.EINVAL, "Is a directory" if is_folder else "not a regular file")
    return status.st_size


def read_small(path: Path, max_bytes: int) -> bytes:
    """The content of a file of at most `max_bytes`. Raises OSError if it is larger or not a regular file."""
    size = check_regular(path)
    if size > max_bytes:
        raise OSError(errno.EFBIG, f"it has {size:,} bytes, more than the {max_bytes:,} allowed for such a file")
    with path.open("rb") as file:
        return file.read(max_bytes)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: a crash at any moment leaves either the old content or the new one.

    Raises RunFailed, which states the space needed if the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:  # "x": never follow an existing link of that name
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise cannot_write(path, error, len(content)) from None


def sweep(folder: Path) -> None:
    """Remove the temporary files of killed processes under this folder. No other process may be writing there."""
    for temporary in folder.rglob(".*.tmp"):
        temporary.unlink(missing_ok=True)


def cannot_write(path: Path, error: OSError, num_bytes: int) -> RunFailed:
    """The RunFailed for a file that could not be written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunFailed(f"the disk is full: {path} needs {num_bytes:,} bytes; free some space and try again")
    return RunFailed(f"cannot write {path} ({num_bytes:,} bytes): {error.strerror or error}")


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power failure; does nothing where folders cannot be synced."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows cannot open folders
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some network file systems cannot sync folders
            raise
    finally:
        os.close(descriptor)


def reserve(path: Path, start: int) -> None:
    """Allocate disk space for the zeros of a sparse file from `start` on, before it is written through a mapping.

    Raises OSError if the disk is full; a write through the mapping would crash the process instead.
    """
    size_left = path.stat().st_size - start
    with path.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), start, size_left)
            return
        file.seek(start)  # Windows and macOS
        for size in (BLOCK,) * (size_left // BLOCK) + (size_left % BLOCK,):
            file.write(bytes(size))


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

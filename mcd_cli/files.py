"""Files that are either whole or not there: temporary name, sync, rename."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from pathlib import Path

from mcd_cli.errors import RunFailed


def write_whole(path: Path, content: bytes) -> None:
    """Write a file so that a crash at any moment leaves the old one or the new one, never half of one.

    Raises RunFailed, with the space needed when the disk is full; the temporary file is removed.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("wb") as file:
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
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

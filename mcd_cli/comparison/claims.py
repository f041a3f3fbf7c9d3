"""Claims: one process at a time works on a part of a comparison, on one machine or on several that share its folder.

A claim is a lock of the operating system, and beside it a lease for file systems whose locks do not reach other
machines. A claim ends with its process: at once on the same machine, after LEASE_SECONDS on another.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, SoftFileLease, Timeout

from mcd_cli.errors import RunFailed
from mcd_cli.files import cannot_write

LOCKS = "locks"
LEASE_SECONDS = 120.0  # the same for all processes; the holder renews its lease three times in this time
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # of a file system without locks: the lease has to do


@contextmanager
def claim(comparison: Path, name: str, *, wait: bool = False) -> Iterator[bool]:
    """Hold `name` for the length of the block. Yields False if another process holds it; wait: for it to end.

    Raises RunFailed if the folder cannot be written.
    """
    folder = comparison / LOCKS
    timeout = -1 if wait else 0
    with ExitStack() as held:
        try:
            folder.mkdir(exist_ok=True)
            try:
                held.enter_context(FileLock(folder / f"{name}.lock", fallback_to_soft=False).acquire(timeout))
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            lease = SoftFileLease(folder / f"{name}.lease", lease_duration=LEASE_SECONDS, on_compromise=_leave)
            held.enter_context(lease.acquire(timeout))
        except Timeout:
            held.close()
            yield False
            return
        except OSError as error:
            raise cannot_write(folder / name, error, 0) from None
        yield True


def _leave(lost: object) -> None:
    """End this process: it was stopped for so long that another one has taken over, and may be writing by now."""
    print(
        "mcd: this process was stopped for too long; another one has taken over its work", file=sys.stderr, flush=True
    )
    os._exit(RunFailed.exit_code)

"""Start and end quickly: torch imports some 1,700 modules, which the garbage collector would scan repeatedly."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """Exclude what is imported within from garbage collection: saves a fifth of the time that importing torch takes."""
    if "torch" in sys.modules:  # and other objects exist, which must stay collectable
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def exit_now(code: int) -> NoReturn:
    """End the process as soon as its output is written: tearing all modules down would take a second."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the reader has closed the pipe
            stream.flush()
    os._exit(code)

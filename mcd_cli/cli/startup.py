"""Quick to start and to end: torch brings some 1,700 modules, which Python would scan again and again."""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import NoReturn


@contextlib.contextmanager
def quick_imports() -> Iterator[None]:
    """What is imported within is never looked through for garbage: a fifth of the time that importing torch takes."""
    if "torch" in sys.modules:  # and with it much else, whose garbage must not be kept
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def exit_now(code: int) -> NoReturn:
    """End the process now, its files closed and its output written: taking all modules apart would take a second."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # whoever read it has left
            stream.flush()
    os._exit(code)

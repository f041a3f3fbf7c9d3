"""Reads CIFAR's pickled batches without executing code: only dicts, lists, numbers, strings and uint8 arrays."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from mcd_cli.errors import UserError, reason_of
from mcd_cli.files import read_small

MAX_BYTES = 2**28  # the largest official batch has 155 MB


def load_pickle(path: Path) -> dict[bytes, Any]:
    """The dict of a batch, with keys as bytes and arrays as uint8. Raises UserError for anything else."""
    try:
        batch = _Unpickler(io.BytesIO(read_small(path, MAX_BYTES)), encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError("it does not contain a dict")
        return {key: value.values() if isinstance(value, _Array) else value for key, value in batch.items()}
    except _Refused as error:
        raise UserError(f"{str(path)!r} is not safe to read (its pickle uses {error}); fetch it again") from None
    except Exception as error:  # the unpickler can raise anything for malformed input
        raise UserError(f"{str(path)!r} is not a complete CIFAR batch ({reason_of(error)}); fetch it again") from None


class _Refused(Exception):
    """The pickle uses a name that no CIFAR batch needs."""


class _Dtype:
    """A stand-in for numpy.dtype that accepts uint8 only."""

    def __init__(self, name: bytes | str, *_: object) -> None:
        if name not in (b"u1", "u1"):
            raise _Refused(f"arrays of type {name!r}")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """A stand-in for numpy.ndarray and its constructor, because numpy's own accepts any type and layout."""

    def __init__(self, *_: object) -> None:
        pass

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, self.shape, _, self.is_fortran, self.raw = state

    def values(self) -> npt.NDArray[np.uint8]:
        flat = np.frombuffer(self.raw, np.uint8)
        return flat.reshape(self.shape[::-1]).T if self.is_fortran else flat.reshape(self.shape)


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


# The opcodes that Python 2 and 3 write for such a dict; all others create objects, or memory without bytes in the file.
_OPCODES = """PROTO FRAME STOP MARK EMPTY_DICT DICT EMPTY_LIST LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    APPEND APPENDS SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD NONE NEWTRUE NEWFALSE
    INT BININT BININT1 BININT2 LONG1 BINFLOAT STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8
    UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"""


class _Unpickler(pickle._Unpickler):
    """The unpickler written in Python: the C version allocates memory up to the largest memo index in the file."""

    dispatch: ClassVar[dict[int, Callable[..., Any]]] = {
        code: pickle._Unpickler.dispatch[code] for code in (getattr(pickle, name)[0] for name in _OPCODES.split())
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}"[:80]) from None

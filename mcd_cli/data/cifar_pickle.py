"""CIFAR's python batches without executing a pickle: dicts, lists, numbers, strings, uint8 arrays."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mcd_cli.errors import UserError


def load_pickle(path: Path) -> dict[bytes, Any]:
    """The dict of a batch, keys as bytes, arrays as uint8; raises UserError for anything else."""
    try:
        with path.open("rb") as file:
            batch = _Unpickler(file, encoding="bytes").load()
        if not isinstance(batch, dict):
            raise ValueError("it holds no dict")
        return {key: value.values() if isinstance(value, _Array) else value for key, value in batch.items()}
    except _Refused as error:
        raise UserError(f"{str(path)!r} is refused: its pickle asks for {error}") from None
    except Exception as error:  # a pickle machine fed with anything raises anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{str(path)!r} is no whole CIFAR batch ({reason}); fetch it again") from None


class _Refused(Exception):
    """A name that no CIFAR batch needs."""


class _Dtype:
    """Stands where numpy.dtype is named: holds uint8 and does nothing."""

    def __init__(self, name: bytes | str, *_: object) -> None:
        if name not in (b"u1", "u1"):
            raise _Refused(f"arrays of type {name!r}")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands where numpy.ndarray is named: numpy's own reconstruction takes any type and layout."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _Dtype, bool, bytes]) -> None:
        _, self.shape, _, self.is_fortran, self.raw = state

    def values(self) -> npt.NDArray[np.uint8]:
        flat = np.frombuffer(self.raw, np.uint8)
        return flat.reshape(self.shape[::-1]).T if self.is_fortran else flat.reshape(self.shape)


def _reconstruct(*_: object) -> _Array:
    return _Array()


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _KNOWN[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}"[:80]) from None

"""Two students on the same images of val: how far one is behind the other, and whether that can be chance. No torch."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcd_cli.errors import UserError, reason_of
from mcd_cli.files import read_small
from mcd_cli.ladder.folder import PREDICTIONS

MAX_BYTES = 2**31  # of predictions


@dataclass(frozen=True)
class Gap:
    """A student against a better one, on `num` images of val: `lost` only the other has right, `gained` only it has."""

    lost: int
    gained: int
    num: int

    @classmethod
    def between(cls, student: bytes, other: bytes) -> Gap:
        """Of two students' `correct_on_val`, in this order."""
        pairs = list(zip(student, other, strict=True))
        return cls(sum(b > a for a, b in pairs), sum(a > b for a, b in pairs), len(pairs))

    @property
    def behind(self) -> float:
        """The difference of the accuracies, a fraction of val; below 0 if the student is the better one."""
        return (self.lost - self.gained) / self.num

    @property
    def errors(self) -> float:
        """The same in standard errors of two students that are equally good: (lost − gained) / √(lost + gained).

        McNemar (1947): images that both or neither have right say nothing about the difference.
        """
        return (self.lost - self.gained) / math.sqrt(max(self.lost + self.gained, 1))


def correct_on_val(folder: Path, students: list[str]) -> dict[str, bytes]:
    """For each of the students, a byte per image of val: 1 where its class is the label; empty without predictions.

    Raises UserError for a damaged file.
    """
    path = folder / PREDICTIONS
    if not path.is_file():
        return {}
    from safetensors import SafetensorError, deserialize  # a library in Rust: no numpy

    try:
        stored = dict(deserialize(read_small(path, MAX_BYTES)))
        labels = _classes(stored["val"])
        found = {name: _classes(stored[f"val/best/{name}"]) for name in students}
        return {name: bytes(a == b for a, b in zip(labels, classes, strict=True)) for name, classes in found.items()}
    except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({reason_of(error)}); restore it, or move it away") from None


def _classes(tensor: dict[str, Any]) -> array[int]:
    if tensor["dtype"] != "I64":
        raise ValueError(f"classes are stored as {tensor['dtype']}, not as I64")
    return array("q", bytes(tensor["data"]))

"""The variants in which a student can be deployed: float32, and int8 if its file was kept."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from mcd_cli.errors import UserError
from mcd_cli.ladder.schema import StudentEntry, inside
from mcd_cli.registry import Row, Table

if TYPE_CHECKING:
    from mcd_cli.ladder.session import Session

FLOAT32, INT8 = "onnx", "int8"  # formats, as in a student's exports
NO_PREPROCESS = "no-preprocess"


@dataclass(frozen=True)
class FormatSpec(Row):
    """A file format. target: the class that writes it (`formats.other.Writer`); "" for those that mcd export knows."""

    command: str
    summary: str
    ending: str
    package: str = "onnx"  # what it needs


FORMATS = Table(
    "format",
    {
        FLOAT32: FormatSpec(
            "", "mcd export", "float32 with the normalisation inside, checked against the model", "onnx"
        ),
        INT8: FormatSpec(
            "",
            "mcd export --int8",
            "8-bit weights and activations, kept if it loses little accuracy on val",
            "int8.onnx",
        ),
        NO_PREPROCESS: FormatSpec(
            "", "mcd export --no-preprocess", "float32 of images that are normalised already", "no-preprocess.onnx"
        ),
        "fp16": FormatSpec(
            "mcd_cli.formats.fp16:Fp16",
            "mcd export --format fp16",
            "ONNX with 16-bit weights: half the size",
            "fp16.onnx",
        ),
        "openvino": FormatSpec(
            "mcd_cli.formats.openvino:OpenVino",
            "mcd export --format openvino",
            "OpenVINO's IR, for Intel's processors and graphics: an .xml and a .bin",
            "xml",
            "openvino",
        ),
        "pt2": FormatSpec(
            "mcd_cli.formats.pt2:Pt2",
            "mcd export --format pt2",
            "a program of torch.export, for PyTorch",
            "pt2",
            "torch",
        ),
    },
)
OTHERS = tuple(name for name, row in FORMATS.items() if row.target)
"""Formats beside ONNX and int8: written by `--format`, chosen by `mcd select --format`."""


@dataclass(frozen=True)
class Variant:
    """A student as float32, as int8 or in another format. name: the student's, with `.FORMAT` unless it is float32."""

    student: StudentEntry
    format: str = FLOAT32
    latency_ms: float | None = None  # one image on this machine, if it was measured
    correct: bytes | None = field(default=None, repr=False)  # 1 where it is right, per image of val, if stored

    @property
    def name(self) -> str:
        return self.student.name if self.format == FLOAT32 else f"{self.student.name}.{self.format}"

    @property
    def predicts_as(self) -> str:
        """The name under which its predictions are stored; the other formats predict what the float32 model does."""
        return self.student.name if self.format in OTHERS else self.name

    @property
    def val(self) -> float:
        """Accuracy on val; for int8, that of the int8 file. The other formats compute what the model does."""
        return self.student.exported[INT8].val if self.format == INT8 else self.student.accuracy.val

    @property
    def temperature(self) -> float | None:
        """What its raw logits are divided by, int8 or not; None where none was fitted."""
        return None if self.student.calibration is None else self.student.calibration.temperature

    @property
    def file(self) -> Path | None:
        """Its file; None if it is not exported."""
        if self.student.home is None or self.format not in self.student.exports:
            return None
        folder, path = self.student.home[0], self.student.exports[self.format]
        return folder / path if inside(folder, path).is_file() else None

    @property
    def bytes(self) -> int:
        """Size of the exported file (of both, if there are two), else of the weights file."""
        if self.file is None:
            return self.student.bytes
        return self.student.exported[self.format].bytes if self.format in OTHERS else self.file.stat().st_size

    @property
    def measured_by(self) -> str:
        """The kind of file whose size `bytes` is."""
        return "weights" if self.file is None else "ONNX" if self.format not in OTHERS else self.format

    def deployed(self) -> Path:
        """Its file. Raises UserError, with the command that writes it, if there is none."""
        if self.file is None:
            run = "" if self.student.home is None else f" --run {shlex.quote(str(self.student.home[0]))}"
            how = f"--format {self.format}" if self.format in OTHERS else f"--student {self.name}"
            raise UserError(f"{self.name} is not exported; write it: mcd export{run} {how}")
        return self.file

    def session(self, threads: int = 1, *, calibrated: bool = True) -> Session:
        """Its ONNX file in onnxruntime, with preprocessing and class names. Raises UserError if there is none.

        calibrated: its probabilities are softmax(z / T) where it has a temperature T, else softmax(z).
        """
        from mcd_cli.ladder.session import open_session

        sha256 = self.student.exported[self.format].sha256 if self.format in self.student.exported else None
        return open_session(self.deployed(), threads=threads, sha256=sha256, calibrated=calibrated)


def variants(student: StudentEntry) -> tuple[Variant, ...]:
    """float32 always; int8 if its file was kept and still exists."""
    int8 = Variant(student, INT8)
    return (Variant(student), int8) if INT8 in student.exported and int8.file is not None else (Variant(student),)

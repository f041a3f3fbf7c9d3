"""Reads weights files without executing anything in them, and writes them atomically."""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from mcd_cli.errors import UserError, reason_of
from mcd_cli.files import check_regular, write_whole
from mcd_cli.norms import LARGEST

METADATA = "mcd"
SAVE_WEIGHTS = "save only the weights: torch.save(model.state_dict(), 'teacher.pt')"

LEGACY_TORCH = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number before torch 1.6
FOREIGN = {
    b"\x89HDF": "an HDF5 file (Keras?)",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ": "an xz archive; unpack it first",
    b"7z\xbc\xaf": "a 7z archive; unpack it first",
    b"Rar!": "a RAR archive; unpack it first",
    b"version https://git-lfs": "a git-lfs pointer; run git lfs pull",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x80": "a Python pickle not written by torch.save; " + SAVE_WEIGHTS,
}

# Types that training scripts store beside the weights and that cannot run code.
HARMLESS: list[Any] = [
    argparse.Namespace,
    np.dtype,
    *{type(np.dtype(t)) for t in "?bhilBHILfde"},
    (np.float64(0).__reduce__()[0], "numpy.core.multiarray.scalar"),
    (np.float64(0).__reduce__()[0], "numpy._core.multiarray.scalar"),
]


@dataclass(frozen=True)
class WeightsFile:
    """A weights file. content: may hold tensors at any depth; ordered: names are in the order of the layers."""

    content: Any
    ordered: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)


def kind_of(path: Path) -> str:
    """The file's format by its content: 'torch', 'legacy torch', 'safetensors' or 'onnx'.

    Raises UserError, which says what the file seems to be instead.
    """
    try:
        size = check_regular(path)
        with path.open("rb") as file:
            start = file.read(512)
            is_tar = file.seek(257) == 257 and file.read(5) == b"ustar"
    except OSError as error:
        raise UserError(f"teacher {path} cannot be read: {error.strerror or error}") from None
    if size == 0:
        raise UserError(f"teacher {path} is empty; copy it again")
    if start.startswith(b"PK\x03\x04"):
        return "torch"
    if start.startswith(LEGACY_TORCH):
        return "legacy torch"
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        return "safetensors"
    if is_tar:
        raise UserError(f"teacher {path} seems to be a tar archive; unpack it first")
    for magic, what in FOREIGN.items():
        if start.startswith(magic):
            raise UserError(f"teacher {path} seems to be {what}")
    if all(byte in b"\t\n\r" or byte >= 32 for byte in start) and _is_text(start):
        page = ", a web page" if start.lstrip()[:1] == b"<" else ""
        raise UserError(f"teacher {path} seems to be text{page}; give a weights file")
    if path.suffix.lower() == ".onnx" or start[:1] == b"\x08":
        return "onnx"
    raise UserError(f"teacher {path} is not a known weights file; give a torch.save, safetensors or ONNX file")


def _is_text(start: bytes) -> bool:
    try:
        start[: len(start) - 3 if len(start) == 512 else None].decode()  # the cut may split a character
    except UnicodeDecodeError:
        return False
    return True


def read_weights(path: Path) -> WeightsFile:
    """Read a torch or safetensors file. Raises UserError if it is damaged or contains more than weights.

    Tensors may be views of the memory-mapped file, so copy those you keep; the archive's parts fit into the file.
    """
    kind = kind_of(path)
    assert kind != "onnx"
    if kind == "safetensors":
        return _read_safetensors(path)
    if kind == "torch":
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(HARMLESS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "torch")
    except Exception as error:  # the unpickler can raise anything for damaged bytes
        blocked = re.search(r"GLOBAL ([\w.]{1,80})", str(error))
        if blocked:
            raise UserError(
                f"teacher {path} contains Python objects ({blocked[1]}), not weights; {SAVE_WEIGHTS}"
            ) from None
        raise UserError(f"teacher {path} is damaged, or contains more than weights; {SAVE_WEIGHTS}") from None
    return WeightsFile(content, ordered=True)


def _check_archive(path: Path) -> None:
    """Raises UserError unless this is a torch archive of weights: complete, uncompressed, and not a program."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            parts = {member.filename.partition("/")[2] for member in members}
            if "constants.pkl" in parts or any(part.startswith("code/") for part in parts):
                raise UserError(f"teacher {path} is a TorchScript program; {SAVE_WEIGHTS}")
            if "data.pkl" not in parts:
                raise UserError(f"teacher {path} is a zip archive without a torch file's data; {SAVE_WEIGHTS}")
            if any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise UserError(f"teacher {path} was compressed after torch.save; {SAVE_WEIGHTS}")
            if sum(member.file_size for member in members) > path.stat().st_size:
                raise UserError(f"teacher {path} is damaged (its parts are larger than the file); copy it again")
            broken = archive.testzip()
    except UserError:
        raise
    except Exception as error:  # as above
        raise UserError(f"teacher {path} is truncated or damaged ({reason_of(error)}); copy it again") from None
    if broken is not None:
        raise UserError(f"teacher {path} is damaged (the checksum of {broken} is wrong); copy it again")


def _read_safetensors(path: Path) -> WeightsFile:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # as above
        raise UserError(f"teacher {path} is a damaged safetensors file ({reason_of(error)}); copy it again") from None
    return WeightsFile(tensors, ordered=False, metadata=_about(path, metadata))


def _about(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata that `save_model` wrote, checked; {} for a file from another program."""
    if METADATA not in metadata:
        return {}
    try:
        about: dict[str, Any] = json.loads(metadata[METADATA])
        assert isinstance(about["arch"], str)
        assert isinstance(about["num_classes"], int)
        for key in {"mean", "std"} & about.keys():
            numbers = about[key]
            assert isinstance(numbers, list)
            assert len(numbers) == 3
            assert all(type(v) in (int, float) and abs(v) <= LARGEST for v in numbers)
        assert all(v >= 1 / LARGEST for v in about.get("std", ()))
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        raise UserError(f"teacher {path} has damaged metadata; copy it again") from None
    return about


def save_model(path: Path, state: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a model's weights as safetensors, atomically; equal weights give equal bytes.

    about: arch, num_classes, input_shape, mean, std and classes, stored as sorted JSON under one metadata key.
    Raises RunFailed if the file cannot be written.
    """
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    text = json.dumps(dict(about), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    write_whole(path, save(tensors, metadata={METADATA: text}))

"""Loads a teacher file of any layout as a frozen network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mcd_cli.errors import UserError
from mcd_cli.files import sha256_of
from mcd_cli.models import ARCHITECTURES, build
from mcd_cli.models.layouts import networks
from mcd_cli.models.recognise import Fit, Network, Unallocated, describe, fit, fits, mismatch, nearest
from mcd_cli.models.weights_file import SAVE_WEIGHTS, kind_of, read_weights, save_model

__all__ = ["TeacherFile", "load_teacher", "save_model"]

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class TeacherFile:
    """A teacher read from a file.

    model: normalised images [n, 3, H, W] → logits [n, num_classes], float32, frozen, in eval mode, on the CPU; arch: a
    name from the zoo, `torchvision:…`, or `onnx`; sha256: of the file; metadata: as passed to `save_model`.
    """

    model: nn.Module
    arch: str
    num_classes: int
    sha256: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def load_teacher(path: Path, *, arch: str | None = None, num_classes: int | None = None) -> TeacherFile:
    """Read a teacher from a torch, safetensors or ONNX file; its architecture is recognised from names and shapes.

    arch: accept only this architecture; num_classes: the data set's number of classes. Pickled code is never executed.
    Raises UserError if the file is damaged, holds more than weights, fits no architecture or several, or has a
    different number of classes.
    """
    if kind_of(path) == "onnx":
        from mcd_cli.models.onnx_teacher import OnnxTeacher

        onnx = OnnxTeacher(path)
        _check_classes(path, onnx.num_classes, num_classes)
        return TeacherFile(onnx.eval(), "onnx", onnx.num_classes, sha256_of(path))
    if arch is not None:
        ARCHITECTURES.check(arch)
    file = read_weights(path)
    try:
        candidates = dict(networks(file.content))
    except ValueError as error:
        raise UserError(f"teacher {path} {error}; {SAVE_WEIGHTS}") from None
    if not candidates:
        keys = ", ".join(map(str, file.content)) if isinstance(file.content, Mapping) else type(file.content).__name__
        raise UserError(
            f"teacher {path} has no network weights (it contains: {keys[:160] or 'nothing'}); {SAVE_WEIGHTS}"
        )
    for tensors in candidates.values():
        for name, tensor in tensors.items():
            _check_size(path, name, tensor)
    shapes = {place: Network(_shapes(tensors), file.ordered) for place, tensors in candidates.items()}
    place, chosen = _choose(path, shapes, candidates, arch or file.metadata.get("arch"))
    _check_classes(path, chosen.num_classes, num_classes)
    model = _load(path, chosen, candidates[place])
    return TeacherFile(model, chosen.arch, chosen.num_classes, sha256_of(path), file.metadata)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _check_classes(path: Path, num_classes: int, expected: int | None) -> None:
    if expected is not None and num_classes != expected:
        raise UserError(
            f"teacher {path} has {num_classes} classes, but the data set has {expected}; "
            "give a teacher trained on this data set"
        )


def _choose(
    path: Path, shapes: Mapping[str, Network], tensors: Mapping[str, Mapping[str, Tensor]], arch: str | None
) -> tuple[str, Fit]:
    """The file's only network that fits exactly one architecture: its place in the file, and its fit."""
    fitting: dict[str, list[Fit]] = {}
    for place, network in shapes.items():
        candidates = fits(network) if arch is None else [f for f in [fit(arch, network)] if f is not None]
        if candidates and not any(_equal(tensors[place], tensors[earlier]) for earlier in fitting):
            fitting[place] = candidates
    if not fitting:
        largest = max(shapes.values(), key=lambda network: len(network.shapes))
        if arch is not None:
            raise UserError(f"teacher {path} does not fit {arch}: {mismatch(arch, largest)}")
        near = " or ".join(nearest(largest))
        hint = f"nearest: {near}" if near else "export it to ONNX, which needs no known architecture"
        raise UserError(f"teacher {path} fits no known architecture ({describe(largest)}); {hint}")
    if len(fitting) > 1:
        places = ", ".join(f"{place or 'top level'} ({f[0].arch})" for place, f in fitting.items())
        raise UserError(f"teacher {path} contains several networks: {places}; save the right one to a separate file")
    ((place, candidates),) = fitting.items()
    if len(candidates) > 1:
        names = " or ".join(f.arch for f in candidates)
        raise UserError(
            f"teacher {path} may be {names}, whose weights have the same shapes; choose with --teacher-arch"
        )
    return place, candidates[0]


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _load(path: Path, chosen: Fit, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Build the architecture with copies of the file's tensors as weights: float32, frozen, in eval mode."""
    with torch.random.fork_rng(devices=[]), Unallocated():
        model = build(chosen.arch, chosen.num_classes)
    state = model.state_dict()
    for name, file_name in chosen.names.items():
        state[name] = _copied(path, file_name, tensors[file_name], state[name].dtype)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _check_size(path: Path, name: str, tensor: Tensor) -> None:
    """Raises UserError for a tensor without memory or larger than the file: a view can repeat one number endlessly."""
    if tensor.is_meta or math.prod(tensor.shape) * tensor.element_size() > path.stat().st_size:
        raise UserError(
            f"teacher {path} is damaged: {name} {list(tensor.shape)} is larger than the file; copy it again"
        )


def _copied(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy of a tensor from the file in the model's dtype. Raises UserError unless all values are valid."""
    if tensor.layout != torch.strided or (tensor.dtype not in FLOATS and tensor.dtype != dtype):
        kind = f"{tensor.dtype} ({tensor.layout})".replace("torch.", "")
        raise UserError(f"teacher {path}: {name} is {kind}; save it as float32")
    copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not np.isfinite(copy.numpy()).all():
        raise UserError(f"teacher {path}: {name} has NaN or infinite values; its training failed, use another teacher")
    if name.endswith("running_var") and copy.min() < 0:
        raise UserError(f"teacher {path} is damaged: {name} has negative variances; copy it again")
    return copy

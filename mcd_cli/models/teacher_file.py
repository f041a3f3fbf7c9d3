"""A teacher's file of any layout as a frozen network; and the writer of our own files."""

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
    """model: normalised images [n, 3, H, W] → logits [n, num_classes], float32, eval mode, frozen, on the CPU.

    arch: a name of the zoo, `torchvision:…`, or `onnx`; sha256: of the file; metadata: what `save_model` was told.
    """

    model: nn.Module
    arch: str
    num_classes: int
    sha256: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


def load_teacher(path: Path, *, arch: str | None = None, num_classes: int | None = None) -> TeacherFile:
    """Read a teacher from a torch, safetensors or ONNX file, its architecture recognised from names and shapes.

    arch: take it as this architecture alone; num_classes: the data set's. No pickled code is ever executed. Raises
    UserError, in one line, for a file that is damaged or holds more than weights, that fits no architecture, that
    fits several which differ, or that has another number of classes.
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
        raise UserError(f"teacher {path} holds no network's weights (it holds: {keys[:160] or 'nothing'})")
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


def _check_classes(path: Path, num_classes: int, wanted: int | None) -> None:
    if wanted is not None and num_classes != wanted:
        raise UserError(
            f"teacher {path} tells {num_classes} classes apart, the data set has {wanted}; "
            "give a teacher of this data set"
        )


def _choose(
    path: Path, shapes: Mapping[str, Network], tensors: Mapping[str, Mapping[str, Tensor]], arch: str | None
) -> tuple[str, Fit]:
    """The one network of the file that fits one architecture: where it stands, and how it fits."""
    fitting: dict[str, list[Fit]] = {}
    for place, network in shapes.items():
        candidates = fits(network) if arch is None else [f for f in [fit(arch, network)] if f is not None]
        if candidates and not any(_equal(tensors[place], tensors[other]) for other in fitting):
            fitting[place] = candidates
    if not fitting:
        largest = max(shapes.values(), key=lambda network: len(network.shapes))
        if arch is not None:
            raise UserError(f"teacher {path} is no {arch}: {mismatch(arch, largest)}")
        near = " or ".join(nearest(largest))
        hint = f"nearest: {near}" if near else "export it to ONNX, which needs no known architecture"
        raise UserError(f"teacher {path} fits no known architecture ({describe(largest)}); {hint}")
    if len(fitting) > 1:
        places = ", ".join(f"{place or 'top level'} ({f[0].arch})" for place, f in fitting.items())
        raise UserError(f"teacher {path} holds several networks: {places}; save the one you mean to a file of its own")
    ((place, candidates),) = fitting.items()
    if len(candidates) > 1:
        names = " or ".join(f.arch for f in candidates)
        raise UserError(f"teacher {path} may be {names}, whose weights have the same shapes; say --teacher-arch")
    return place, candidates[0]


def _equal(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def _load(path: Path, chosen: Fit, tensors: Mapping[str, Tensor]) -> nn.Module:
    """The architecture with copies of the file's tensors as its weights: float32, eval mode, frozen."""
    with torch.random.fork_rng(devices=[]), Unallocated():
        model = build(chosen.arch, chosen.num_classes)
    state = model.state_dict()
    for name, its in chosen.names.items():
        state[name] = _copied(path, its, tensors[its], state[name].dtype)
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def _check_size(path: Path, name: str, tensor: Tensor) -> None:
    """A tensor has memory behind it, and no more than the file: a view may repeat one number without end."""
    if tensor.is_meta or math.prod(tensor.shape) * tensor.element_size() > path.stat().st_size:
        raise UserError(f"teacher {path} is damaged: {name} {list(tensor.shape)} is larger than the file")


def _copied(path: Path, name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """An own copy of a tensor of the file in the dtype of the model's; finite, and no larger than the file."""
    if tensor.layout != torch.strided or (tensor.dtype not in FLOATS and tensor.dtype != dtype):
        kind = f"{tensor.dtype} ({tensor.layout})".replace("torch.", "")
        raise UserError(f"teacher {path}: {name} is {kind}; save it as float32")
    copy = tensor.detach().to(dtype, copy=True, memory_format=torch.contiguous_format)
    if not np.isfinite(copy.numpy()).all():
        raise UserError(f"teacher {path}: {name} has NaN or infinite values; its training has failed, give another")
    if name.endswith("running_var") and copy.min() < 0:
        raise UserError(f"teacher {path} is damaged: {name} has negative variances; copy it again")
    return copy

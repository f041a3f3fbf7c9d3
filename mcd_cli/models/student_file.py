"""Loads a student's weights file as a network."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors

from mcd_cli.errors import UserError, reason_of
from mcd_cli.files import check_regular, read_small
from mcd_cli.models import build
from mcd_cli.models.normalized import Normalized
from mcd_cli.models.recognise import Unallocated

MAX_HEADER = 2**25  # bytes in a file besides the tensors: names, shapes and class names


def load_student(
    path: Path, *, sha256: str, arch: str, num_classes: int, mean: Sequence[float], std: Sequence[float]
) -> Normalized:
    """The network in eval mode on the CPU: RGB float32 [n, 3, H, W] in [0, 1] → raw logits [n, num_classes].

    Raises UserError if the file is missing, its sha256 differs, or it does not fit the architecture.
    """
    try:
        check_regular(path)
        with torch.random.fork_rng(devices=[]), Unallocated():
            state = build(arch, num_classes).state_dict()
        needed = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
        content = read_small(path, needed + MAX_HEADER)
    except OSError as error:
        raise UserError(f"student weights {path} cannot be read: {error.strerror or error}") from None
    if hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"student weights {path} do not match the manifest (sha256 differs); restore the file")
    mismatch = f"student weights {path} do not fit {arch} with {num_classes} classes"
    if len(content) < needed:  # checked before the memory is allocated
        raise UserError(f"{mismatch}: {len(content):,} bytes are too few; restore the file")
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten, so keep the caller's random state
        network = build(arch, num_classes)
    try:
        network.load_state_dict(read_tensors(content))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(f"{mismatch}: {reason_of(error)}") from None
    return Normalized(network, mean, std).eval()

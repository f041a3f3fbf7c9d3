"""Every random draw is a function of seeds and positions; there is no hidden generator state."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def seed_of(*key: int | str) -> int:
    """A 63-bit seed from a key such as ("order", seed, epoch): equal keys, equal draws, on any machine."""
    digest = hashlib.sha256("\x1f".join(f"{type(k).__name__}:{k}" for k in key).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(*key: int | str) -> torch.Generator:
    """A CPU generator whose whole stream is a function of the key."""
    import torch

    return torch.Generator().manual_seed(seed_of(*key))

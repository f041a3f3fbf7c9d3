"""Where and how a run computes: device, precision, threads, determinism."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from mcd_cli.errors import UserError
from mcd_cli.machine import processor


@dataclass(frozen=True)
class Hardware:
    """The device and the precision of ordinary steps (a meta step is always float32)."""

    device: torch.device
    precision: str

    def autocast(self, enabled: bool = True) -> AbstractContextManager[object]:
        wanted = enabled and self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    def describe(self) -> dict[str, object]:
        """What the manifest records: device, its model, precision, threads, torch's version."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor()
        return {
            "type": self.device.type,
            "name": name,
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }


def prepare(device: str, precision: str, threads: int | None, deterministic: bool) -> Hardware:
    """Resolve `auto`, set threads and determinism for the process. Raises UserError for a device that is not here."""
    if threads is not None:
        torch.set_num_threads(threads)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto")
    if precision == "auto":
        precision = "bf16" if _native_bf16(device) else "fp32"
    elif precision == "bf16" and not _native_bf16(device):
        raise UserError(f"--precision bf16: this {device} has no native bf16; use fp32 or auto")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    # deterministic mode fills fresh memory by default, which costs time and guards only against our own bugs
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic
    return Hardware(torch.device(device), precision)


def _native_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

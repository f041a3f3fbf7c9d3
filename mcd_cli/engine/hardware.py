"""Where and how a run computes: device, precision, threads, determinism."""

from __future__ import annotations

import ctypes
import os
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from mcd_cli.data import memory
from mcd_cli.errors import UserError
from mcd_cli.machine import processor
from mcd_cli.ops.distributed import SINGLE_PROCESS, Processes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


@dataclass(frozen=True)
class Hardware:
    """The device, the precision of ordinary steps (a meta step is always float32), and the processes of the run."""

    device: torch.device
    precision: str
    processes: Processes = SINGLE_PROCESS

    def autocast(self, enabled: bool = True) -> AbstractContextManager[object]:
        wanted = enabled and self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=wanted)

    @property
    def runs_ahead(self) -> bool:
        """Whether the host may queue steps without waiting for them: on a GPU that this process has for itself."""
        return self.device.type == "cuda" and self.processes.world == 1

    def describe(self) -> dict[str, object]:
        """What the manifest records: device, its model, precision, processes, threads of each, torch's version."""
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else processor()
        return {
            "type": self.device.type,
            "name": name,
            "precision": self.precision,
            "processes": self.processes.world,
            "threads": torch.get_num_threads(),
            "torch": str(torch.__version__),
        }


def joined(device: str) -> Processes:
    """The processes of the run that this one is part of, before anything else is known of it."""
    return Processes.join(_resolved(device))


def prepare(device: str, precision: str, threads: int | None, deterministic: bool) -> Hardware:
    """Resolve `auto`, set threads and determinism for the process, and join the others of the run.

    Raises UserError for a device or a precision that is not here.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = _resolved(device)
    if device == "cpu":
        _keep_freed_memory()
    if precision == "auto":
        precision = "bf16" if _native_bf16(device) else "fp32"
    elif precision == "bf16" and not _native_bf16(device):
        raise UserError(f"--precision bf16: this {device} has no native bf16; use fp32 or auto")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # as use_deterministic_algorithms does, which imports the whole compiler for it
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # deterministic mode fills fresh memory by default, which costs time and guards only against our own bugs
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32: the meta-gradient is exact in no less
    torch.backends.cudnn.benchmark = not deterministic
    processes = Processes.join(device)
    place = (
        torch.device(device, processes.local_rank) if device == "cuda" and processes.world > 1 else torch.device(device)
    )
    return Hardware(place, precision, processes)


def _keep_freed_memory() -> None:
    """Large blocks stay with the process when they are freed (glibc; elsewhere nothing happens).

    glibc gives blocks of over 32 MB back at once, and the kernel clears the same pages again for the next layer's
    activations: a training step of resnet10-m, 400x3x32x32, took 650 ms instead of 760 with one thread.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _native_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _resolved(device: str) -> str:
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available here; use --device cpu or auto")
    return device


def memory_for_images(hardware: Hardware, asked: int | None) -> tuple[int, int]:
    """Bytes of images that this process may hold in the machine's memory, and on the device.

    Unless asked for: half of what is free, shared by the processes of this machine.
    """
    host = memory.available() // 2 // hardware.processes.local_world if asked is None else asked
    if hardware.device.type == "cpu":
        return host, host
    return host, int(torch.cuda.mem_get_info(hardware.device)[0]) // 2 if asked is None else asked

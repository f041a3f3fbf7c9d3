"""The hardware settings of a run: device, precision, threads, determinism."""

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

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # from glibc's malloc.h


@dataclass(frozen=True)
class Hardware:
    """The device, the precision of ordinary steps (a meta step is always float32), and the processes of the run."""

    device: torch.device
    precision: str
    processes: Processes = SINGLE_PROCESS

    def autocast(self, enabled: bool = True) -> AbstractContextManager[object]:
        """A context for the run's precision: autocast to bf16, or no change for fp32."""
        use_bf16 = enabled and self.precision == "bf16"
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=use_bf16)

    @property
    def runs_ahead(self) -> bool:
        """Whether the host may queue steps without waiting for them: on a GPU, in a run with a single process."""
        return self.device.type == "cuda" and self.processes.world == 1

    def describe(self) -> dict[str, object]:
        """The manifest's entry: device and its model, precision, processes, threads per process, torch version."""
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
    """Join the run's processes, before anything else is set up. Raises UserError as Processes.join does."""
    return Processes.join(_resolved(device))


def prepare(device: str, precision: str, threads: int | None, deterministic: bool) -> Hardware:
    """Resolve `auto`, set this process's threads and determinism, and join the run's other processes.

    Raises UserError for a device or a precision that this machine does not have.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    device = _resolved(device)
    if device == "cpu":
        _keep_freed_memory()
    if precision == "auto":
        precision = "bf16" if _native_bf16(device) else "fp32"
    elif precision == "bf16" and not _native_bf16(device):
        raise UserError(f"--precision bf16: the {device} has no native bf16 here; use fp32 or auto")
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # what use_deterministic_algorithms does, which would import torch's whole compiler
    torch.set_deterministic_debug_mode("error" if deterministic else "default")
    # by default, deterministic mode fills new memory, which costs time and only helps to find bugs
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.allow_tf32 = False  # the exact meta-gradient needs full float32
    torch.backends.cudnn.benchmark = not deterministic
    processes = Processes.join(device)
    place = (
        torch.device(device, processes.local_rank) if device == "cuda" and processes.world > 1 else torch.device(device)
    )
    return Hardware(place, precision, processes)


def _keep_freed_memory() -> None:
    """Make glibc keep large freed blocks in the process; has no effect with other C libraries.

    By default glibc returns blocks above 32 MB to the system at once, and the kernel clears the same pages again for
    the next layer's activations. With one thread, a training step of resnet10-m at 400x3x32x32 takes 650 ms instead
    of 760.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def _native_bf16(device: str) -> bool:
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device == "cpu" and bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _resolved(device: str) -> str:
    """Resolve `auto` and check the device. `auto` never chooses mps, which has no float64 and is untested."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: no CUDA device is available; use --device cpu or auto")
    if device == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is available; use --device cpu or auto")
    return device


def memory_for_images(hardware: Hardware, limit: int | None) -> tuple[int, int]:
    """How many bytes of images this process may hold in host memory and on the device.

    limit: bytes for each of them; None: half of the free memory, divided among the processes on this machine (and
    halved again for an Apple GPU, which shares it).
    """
    host = memory.available() // 2 // hardware.processes.local_world if limit is None else limit
    if hardware.device.type == "mps" and limit is None:
        host //= 2
    if hardware.device.type != "cuda":
        return host, host
    return host, int(torch.cuda.mem_get_info(hardware.device)[0]) // 2 if limit is None else limit

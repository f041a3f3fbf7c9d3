"""How much memory is available to this process."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # where a container's limit is
ASSUMED = 4 * 2**30  # bytes, if the system does not say


def available() -> int:
    """Bytes of free memory, on the machine or in the container, whichever is less."""
    limits = [_of_machine()]
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        limits.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return min(limits)


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):  # not Linux
        pass
    try:
        if sys.platform == "win32":
            status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its size, physical memory, free physical memory, ...
            return status[2] if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else ASSUMED
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return ASSUMED

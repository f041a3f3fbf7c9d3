"""How much memory this process may still take."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")  # a container's own limit
ASSUMED = 4 * 2**30  # where the system does not say


def available() -> int:
    """Bytes that can be taken without pushing anybody out: the machine's, or the container's where that is less."""
    found = [_of_machine()]
    try:
        limit, used = ((CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current"))
        found.append(max(0, int(limit) - int(used)))
    except (OSError, ValueError):  # no container, or "max"
        pass
    return min(found)


def _of_machine() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):  # not Linux
        pass
    try:
        if sys.platform == "win32":
            status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its size, all physical memory, what is free of it, ...
            return status[2] if ctypes.windll.kernel32.GlobalMemoryStatusEx(status) else ASSUMED
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    except (AttributeError, OSError, ValueError):
        return ASSUMED

"""The steps of tests/system/test_steps.py under the instruction sets of lesser processors.

oneDNN and torch choose their kernels when they start, so each set needs a process of its own. A set that is no limit
for this processor is skipped: the file itself has tested it.
"""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from . import TESTS

STEPS = TESTS / "system" / "test_steps.py"
LIMITS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")


def steps_under(onednn: str, aten: str | None, *options: str) -> None:
    """Run them below these limits: ONEDNN_MAX_CPU_ISA and, unless None, ATEN_CPU_CAPABILITY. options: pytest's."""
    here = torch.backends.cpu.get_cpu_capability()
    if here == "AVX2" and onednn != "SSE41" and os.environ.keys().isdisjoint(LIMITS):
        pytest.skip(f"this processor has {here}: {onednn} is no limit")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {LIMITS[0]: onednn, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if aten is not None:
        environment[LIMITS[1]] = aten
    command = [sys.executable, "-m", "pytest", str(STEPS), "-q", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

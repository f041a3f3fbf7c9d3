"""The steps of test_steps.py under the instruction sets of lesser processors.

oneDNN and torch choose their kernels when they start, so each runs in a process of its own. Where this processor has
no more than the limit, it is tested once more as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

GROUPS = Path(__file__).with_name("test_steps.py")


@pytest.mark.parametrize(
    ("onednn", "torch"), [("SSE41", "default"), ("AVX2", "avx2"), ("AVX512_CORE", None)], ids=lambda name: str(name)
)
def test_every_step_under(onednn: str, torch: str | None) -> None:
    environment = os.environ | {"ONEDNN_MAX_CPU_ISA": onednn, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if torch is not None:
        environment["ATEN_CPU_CAPABILITY"] = torch
    command = [sys.executable, "-m", "pytest", str(GROUPS), "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

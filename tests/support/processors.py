"""The steps of tests/system/test_steps.py under the instruction sets of lesser processors.

oneDNN and torch choose their kernels when they start, so each set needs a process of its own. Where this processor has
no more than the limit, it is tested once more as it is.
"""

from __future__ import annotations

import os
import subprocess
import sys

from . import TESTS

STEPS = TESTS / "system" / "test_steps.py"


def steps_under(onednn: str, torch: str | None) -> None:
    """Run them below these limits: ONEDNN_MAX_CPU_ISA and, unless None, ATEN_CPU_CAPABILITY."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"ONEDNN_MAX_CPU_ISA": onednn, "OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"}
    if torch is not None:
        environment["ATEN_CPU_CAPABILITY"] = torch
    command = [sys.executable, "-m", "pytest", str(STEPS), "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]

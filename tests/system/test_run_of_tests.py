"""A test run ends and names the test that crashed or hung: the project's own settings, on planted tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import ROOT

SETTINGS = ROOT / "pyproject.toml"


@pytest.mark.parametrize(
    ("body", "limit"),
    [("os.abort()", "60"), ("time.sleep(600)", "1")],
    ids=["dies", "hangs"],
)
def test_it_ends(tmp_path: Path, body: str, limit: str) -> None:
    (tmp_path / "test_planted.py").write_text(f"import os, time\n\n\ndef test_culprit():\n    {body}\n")
    (tmp_path / "test_other.py").write_text("def test_innocent():\n    pass\n")
    command = [sys.executable, "-m", "pytest", "-c", str(SETTINGS), "--rootdir", str(tmp_path), "--timeout", limit]
    command += ["-n", "2", "--dist", "loadfile", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_planted.py::test_culprit" in done.stdout
    assert "1 failed, 1 passed" in done.stdout

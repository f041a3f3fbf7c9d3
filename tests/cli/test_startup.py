"""A quick start and a quick exit lose no output, no exit code and no garbage collection."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

PIPES: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE) | {"text": True}


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_leaving_writes_everything_first() -> None:
    done = run(
        "import sys\nfrom mcd_cli.cli.startup import exit_now\n"
        "print('x' * 300_000, end='')\nprint('y', end='', file=sys.stderr)\nexit_now(3)"
    )
    assert (done.returncode, len(done.stdout), done.stderr) == (3, 300_000, "y")


def test_leaving_when_the_reader_has_left() -> None:
    code = "import sys\nfrom mcd_cli.cli.startup import exit_now\nsys.stdin.read()\nprint('x' * 9)\nexit_now(4)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    process = subprocess.Popen([sys.executable, "-c", code], env=buffered, **PIPES)
    assert process.stdout is not None
    process.stdout.close()  # it prints when its input has ended
    process.stdout = None
    _, complaint = process.communicate("", timeout=60)
    assert (process.returncode, complaint) == (4, "")


def test_only_the_first_imports_are_frozen() -> None:
    done = run(
        "import gc\nfrom mcd_cli.cli.startup import quick_imports\n"
        "with quick_imports():\n    assert not gc.isenabled()\n    import torch\n"
        "frozen = gc.get_freeze_count()\nassert frozen > 100_000 and gc.isenabled()\n"
        "with quick_imports():\n    assert gc.isenabled()\n    garbage = [[] for _ in range(1000)]\n"
        "assert gc.get_freeze_count() <= frozen"
    )
    assert done.returncode == 0, done.stderr

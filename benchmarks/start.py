"""How long a whole run takes from the shell: one epoch of the demo, start, warm start, pictures and end included.

    python benchmarks/start.py [--repeats 5] [--threads 2] [--out benchmarks/results/NAME.json]

In turn: with a teacher to train first (an empty cache), with that teacher in the cache, and a bare `import torch`, that
every run pays for. Seconds of wall time; run it alone on the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

from joint_step import spread

from mcd_cli.machine import processor


def seconds(*command: str, cache: Path) -> float:
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], env=os.environ | {"MCD_CACHE": str(cache)}, check=True, capture_output=True
    )
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    run = ("-m", "mcd_cli", "distill", "--dataset", "digits", "--epochs", "1", "--threads", str(asked.threads))
    found: dict[str, list[float]] = {"teacher trained first": [], "teacher in the cache": [], "import torch": []}
    for i in range(asked.repeats):
        with tempfile.TemporaryDirectory() as place:
            cache = Path(place, "cache")
            for name in ("teacher trained first", "teacher in the cache"):
                found[name].append(seconds(*run, "--out", str(Path(place, name)), cache=cache))
            found["import torch"].append(seconds("-c", "import torch", cache=cache))
        print(f"{i + 1}: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in found.items()), file=sys.stderr)
    document = {
        "hardware": {"name": processor(), "cores": os.cpu_count(), "threads": asked.threads},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "matplotlib")},
        "seconds": {name: spread(values) for name, values in found.items()},
    }
    text = json.dumps(document, indent=2)
    print(text)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

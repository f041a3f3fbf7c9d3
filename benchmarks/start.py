"""Times a whole run from the shell: one epoch of the demo, including start-up, warm start, plots and shutdown.

    python benchmarks/start.py [--repeats 5] [--threads 2] [--out benchmarks/results/NAME.json]

Three cases alternate: a run that trains a teacher first (empty cache), a run with the teacher in the cache, and a bare
`import torch`, which is part of every run. Results are seconds of wall time; run it on an otherwise idle machine.
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
    args = parser.parse_args()
    run = ("-m", "mcd_cli", "distill", "--dataset", "digits", "--epochs", "1", "--threads", str(args.threads))
    times: dict[str, list[float]] = {"teacher trained first": [], "teacher in the cache": [], "import torch": []}
    for i in range(args.repeats):
        with tempfile.TemporaryDirectory() as place:
            cache = Path(place, "cache")
            for name in ("teacher trained first", "teacher in the cache"):
                times[name].append(seconds(*run, "--out", str(Path(place, name)), cache=cache))
            times["import torch"].append(seconds("-c", "import torch", cache=cache))
        print(f"{i + 1}: " + ", ".join(f"{name} {values[-1]:.1f} s" for name, values in times.items()), file=sys.stderr)
    document = {
        "hardware": {"name": processor(), "cores": os.cpu_count(), "threads": args.threads},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in ("torch", "matplotlib")},
        "seconds": {name: spread(values) for name, values in times.items()},
    }
    text = json.dumps(document, indent=2)
    print(text)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

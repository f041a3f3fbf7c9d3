"""Exports and times the students of finished runs: float32 and int8 checks, and latencies, with the command line.

    python benchmarks/deploy.py RUN... [--threads 1] [--batch 1,8] [--out benchmarks/results/NAME.json]

Each run is copied, its students are exported as float32 and int8 (and checked on val), and every file is timed in
onnxruntime: 20 warm-up and 200 timed calls, in alternating blocks. Run it on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mcd_cli.ladder.latency import hardware_key
from mcd_cli.machine import processor


def mcd(*args: str) -> Any:
    """The JSON output of a command; exit code 4 (a check failed) is a valid result too."""
    process = subprocess.run([sys.executable, "-m", "mcd_cli", *args, "--json"], stdout=subprocess.PIPE, text=True)
    if process.returncode not in (0, 4):
        raise SystemExit(f"mcd {' '.join(args)}: exit code {process.returncode}")
    return json.loads(process.stdout)


def of_run(run: Path, threads: int, batch: str) -> dict[str, Any]:
    """The exported files, failed checks and latencies of one run."""
    manifest = json.loads((run / "ladder.json").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as place:
        copy = str(Path(shutil.copytree(run, Path(place, run.name), ignore=shutil.ignore_patterns("exports"))))
        exported = mcd("export", "--run", copy, "--int8")
        timed = mcd("profile", "--run", copy, "--latency", "--batch", batch, "--threads", str(threads))
    files = [{key: value for key, value in entry.items() if key != "path"} for entry in exported["exports"]]
    latencies = {row["name"]: row["latency"]["timings"] for row in timed["rows"]}
    return {
        "dataset": manifest["dataset"]["name"],
        "input_shape": manifest["dataset"]["input_shape"],
        "method": manifest["method"],
        "seed": manifest["seed"],
        "files": files,
        "refused": exported["refused"],
        "latency": latencies,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    packages = ("torch", "onnx", "onnxruntime", "onnxscript")
    result = {
        "hardware": {"name": processor(), "cores": os.cpu_count(), "threads": args.threads},
        "versions": {"python": platform.python_version()} | {name: version(name) for name in packages},
        "measured_on": hardware_key(args.threads),
        "runs": [of_run(run, args.threads, args.batch) for run in args.runs],
    }
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

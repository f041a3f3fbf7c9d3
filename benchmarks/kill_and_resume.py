"""Kills a run at random moments with SIGKILL, resumes it, and compares its files with those of an uninterrupted run.

    python benchmarks/kill_and_resume.py [--kills 50] [--seed 0] [--out benchmarks/results/NAME.json]

The run is mc-distil on the built-in digits with a teacher, a warm start and a checkpoint after every step, on one
thread. It is started, killed after a random time (possibly during its start-up), resumed, killed again, and so on
until it finishes. Then its students, manifest, predictions and metrics are compared byte by byte, and the next run
starts, until the number of kills is reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

RECIPE = """
dataset = "digits"
batch_size = 256
epochs = 4
students = ["resnet10-xxs", "resnet10-xxxs"]
teacher = {arch = "resnet10-xs", epochs = 2, lr = 0.05}
warm_start = {epochs = 2, lr = 0.05}
augment = {preset = "digits"}
coordinator = {arch = "resnet10-xxxs", every = 2}
checkpoint = {every = "1steps"}
"""


def start(folder: Path, cache: Path) -> subprocess.Popen[bytes]:
    """Start a run in the folder, or resume the one that is there, in a new process."""
    is_resumed = (folder / "run" / "recipe.toml").exists()
    how = ["--resume", str(folder / "run")] if is_resumed else ["--recipe", str(folder / "r.toml")]
    how += [] if is_resumed else ["--out", str(folder / "run")]
    return subprocess.Popen(
        [sys.executable, "-m", "mcd_cli", "distill", "--quiet", "--threads", "1", "--device", "cpu", *how],
        env={**os.environ, "MCD_CACHE": str(cache)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def whole(folder: Path, cache: Path) -> float:
    """Seconds of an uninterrupted run."""
    (folder / "r.toml").write_text(RECIPE)
    start_time = time.monotonic()
    _, stderr = (process := start(folder, cache)).communicate()
    if process.returncode:
        raise SystemExit(stderr.decode())
    return time.monotonic() - start_time


def left_by(folder: Path) -> dict[str, bytes | str]:
    """The files of a finished run, without its creation time."""
    manifest = json.loads((folder / "run" / "ladder.json").read_text())
    manifest.pop("created")
    files = [*sorted((folder / "run" / "students").iterdir()), folder / "run" / "predictions.safetensors"]
    files.append(folder / "run" / "metrics.jsonl")
    return {"ladder.json": json.dumps(manifest), **{path.name: path.read_bytes() for path in files}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    print(f"seed {args.seed}", flush=True)
    draw = random.Random(args.seed)
    result: dict[str, Any] = {
        "seed": args.seed,
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "kills": 0,
        "before_any_state": 0,
        "runs": 0,
        "runs_identical": 0,
    }
    with tempfile.TemporaryDirectory() as name:
        reference = Path(name, "reference")
        reference.mkdir()
        seconds = whole(reference, reference / "cache")
        print(f"uninterrupted: {seconds:.0f} s", flush=True)
        expected = left_by(reference)
        while result["kills"] < args.kills:
            result["runs"] += 1
            folder = Path(name, f"run-{result['runs']}")
            folder.mkdir()
            (folder / "r.toml").write_text(RECIPE)
            while not (folder / "run" / "ladder.json").exists():
                process = start(folder, folder / "cache")
                try:
                    _, stderr = process.communicate(timeout=draw.uniform(0.2, 0.7) * seconds)
                    if process.returncode:
                        raise SystemExit(f"run {result['runs']} failed: {stderr.decode()}")
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.communicate()
                    result["kills"] += 1
                    result["before_any_state"] += not (folder / "run" / "checkpoint").exists()
            is_same = left_by(folder) == expected
            result["runs_identical"] += is_same
            print(
                f"run {result['runs']}: {'identical' if is_same else 'DIFFERENT'}, {result['kills']} kills", flush=True
            )
    print(json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    sys.exit(result["runs"] != result["runs_identical"])


if __name__ == "__main__":
    main()

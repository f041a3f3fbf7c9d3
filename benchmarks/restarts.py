"""A process of a training in two is killed: does the group start again by itself, and end with the same bytes?

    python benchmarks/restarts.py --kills 10 --json benchmarks/results/restarts.json

Each run is `torchrun --max-restarts 3` with two gloo processes on a small mc-distil run of the digits with a checkpoint
every 2 steps; one of the two, drawn at random, gets SIGKILL at a random moment. Exit code 1: predictions that differ
from those of a run that nobody killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mcd_cli.ladder.folder import CHECKPOINT, PREDICTIONS
from mcd_cli.machine import processor

RECIPE = """
extends = "digits"
epochs = 3
students = ["resnet10-xxs", "resnet10-xxxs"]
[teacher]
arch = "resnet10-xs"
epochs = 1
[warm_start]
epochs = 1
[checkpoint]
every = "2steps"
"""


def start(folder: Path, out: Path) -> subprocess.Popen[bytes]:
    log = (folder / "log").open("wb")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "--max-restarts",
        "3",
    ]
    command += ["-m", "mcd_cli", "distill", "--recipe", str(folder / "tiny.toml"), "--out", str(out), "--threads", "1"]
    return subprocess.Popen(command, stdout=log, stderr=log)


def workers(parent: int) -> list[int]:
    """The processes that torchrun has started (Linux)."""
    found = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [pid for pid in map(int, found) if b"mcd_cli" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def main() -> None:
    """Run and kill."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ |= {"MCD_CACHE": str(folder / "cache"), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        (folder / "tiny.toml").write_text(RECIPE, encoding="utf-8")
        if start(folder, folder / "whole").wait():
            raise SystemExit((folder / "log").read_text()[-2000:])
        expected = (folder / "whole" / PREDICTIONS).read_bytes()
        for number in range(arguments.kills):
            out = folder / str(number)
            process = start(folder, out)
            while not (out / CHECKPOINT).is_dir():
                time.sleep(0.02)
            delay = moments.uniform(0, 3)
            time.sleep(delay)
            victims = workers(process.pid)
            if victims:
                os.kill(moments.choice(victims), 9)
            code = process.wait()
            said = (folder / "log").read_text(errors="replace")
            equal = code == 0 and (out / PREDICTIONS).read_bytes() == expected
            row = {
                "killed": bool(victims),
                "after": round(delay, 1),
                "resumed": said.count("resuming from step"),
                "code": code,
                "equal": equal,
            }
            rows.append(row)
            print(number + 1, row, flush=True)
            if not equal:
                print(said[-3000:])
    if arguments.json:
        content = {"hardware": {"name": processor(), "cores": os.cpu_count()}, "kills": rows}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    raise SystemExit(0 if all(row["equal"] for row in rows) else 1)


if __name__ == "__main__":
    main()

"""Several processes work on one comparison at once: is everything trained once, and to the same bits?

    python benchmarks/races.py --races 20 --json benchmarks/results/races.json

Each race starts two `mcd compare --resume` processes, the second after a random delay, on a new comparison of kd and
takd on two seeds of the digits. In every other race, one of them is killed at a random moment and a third process takes
over. The predictions are compared, byte for byte, with those of a single process, and every start of a run is counted.
Exit code 1: a difference, or a run that was started twice although nothing was killed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from mcd_cli.comparison.cells import CELLS
from mcd_cli.ladder.folder import PREDICTIONS
from mcd_cli.machine import processor

RECIPE = """
extends = "digits"
epochs = 2
students = ["resnet10-xxs", "resnet10-xxxs"]
[teacher]
arch = "resnet10-xs"
epochs = 1
[warm_start]
epochs = 1
"""
METHODS, SEEDS = "kd,takd", "0-1"
STARTED = re.compile(r"^\d+ of \d+: (.+)$", re.MULTILINE)


def mcd(*args: str) -> list[str]:
    return [sys.executable, "-m", "mcd_cli", "compare", *args, "--threads", "1"]


def predictions(comparison: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(comparison.glob(f"{CELLS}/*/{PREDICTIONS}"))}


def race(planned: Path, place: Path, moments: random.Random, kill: bool) -> tuple[Path, dict[str, int]]:
    """The comparison's folder, and how often each run was started."""
    folder = place / "race"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(planned, folder)
    command = mcd("--resume", str(folder))
    processes, logs = [], []
    for number, delay in enumerate((0.0, moments.uniform(0, 6))):
        time.sleep(delay)
        log = (place / f"{number}.log").open("w+")
        logs.append(log)
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log))
    if kill:
        time.sleep(moments.uniform(0, 12))
        victim = moments.choice(processes)
        victim.kill()
        third = (place / "2.log").open("w+")
        logs.append(third)
        processes.append(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=third))
    codes = [process.wait() for process in processes]
    if any(code not in (0, -9) for code in codes):
        raise SystemExit(f"exit codes {codes}; see {place}")
    started: Counter[str] = Counter()
    for log in logs:
        log.seek(0)
        started.update(STARTED.findall(log.read()))
        log.close()
    return folder, dict(started)


def main() -> None:
    """Run the races."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--races", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    moments = random.Random(arguments.seed)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        os.environ["MCD_CACHE"] = str(root / "cache")
        (root / "tiny.toml").write_text(RECIPE, encoding="utf-8")
        plan = ["--recipe", str(root / "tiny.toml"), "--methods", METHODS, "--seeds", SEEDS]
        subprocess.run([*mcd(*plan, "--out", str(root / "planned"), "--nodes")], check=True, stdout=subprocess.DEVNULL)
        subprocess.run([*mcd(*plan, "--out", str(root / "alone"), "-q")], check=True, stdout=subprocess.DEVNULL)
        expected = predictions(root / "alone")
        for number in range(arguments.races):
            kill = number % 2 == 1
            since = time.perf_counter()
            folder, started = race(root / "planned", root, moments, kill)
            row = {
                "killed": kill,
                "equal": predictions(folder) == expected,
                "runs": len(started),
                "started_twice": sorted(name for name, count in started.items() if count > 1),
                "seconds": round(time.perf_counter() - since, 1),
            }
            rows.append(row)
            print(number + 1, row, flush=True)
    good = all(row["equal"] and (row["killed"] or not row["started_twice"]) for row in rows)
    if arguments.json:
        arguments.json.write_text(
            json.dumps({"hardware": {"name": processor(), "cores": os.cpu_count()}, "races": rows}, indent=1) + "\n"
        )
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()

"""Measures how a step's time grows with students, batch, image size, teacher, C-NET and processes, and fits a formula.

    python benchmarks/scaling.py [--threads 2] [--repeats 3] [--out benchmarks/results/scaling.json]
    python benchmarks/scaling.py --doc benchmarks/results/scaling.json [--card FLOOR.json] > docs/scaling.md

Each point is the engine's training step on the built-in digits at that size, after two warm-up steps; a method with
C-NET has an ordinary and a meta step. The formula, seconds = MACs/rate + bytes/bandwidth + constant, is fitted to the
points with one process by non-negative least squares on relative errors. --card: floor.py's results from a GPU, from
whose two rates the time for ImageNet-1k on that GPU is estimated.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from floor import activations, step, trainer_of, work
from joint_step import STUDENTS, batches_of, spread
from scaling_page import Reckoning, page
from scipy.optimize import nnls

from mcd_cli.machine import processor
from mcd_cli.models import build
from mcd_cli.models.cost import profile
from mcd_cli.models.students import freeze

DEFAULTS: dict[str, Any] = {
    "students": 5,
    "batch_size": 400,
    "size": 32,
    "teacher": "resnet10-l",
    "method": "kd",
    "coordinator": "resnet10-s",
    "processes": 1,
    "threads": None,
}
SWEEPS: dict[str, list[dict[str, Any]]] = {
    "students": [{"students": k} for k in range(1, 6)],
    "batch": [{"batch_size": n} for n in (50, 100, 200, 400, 800)],
    "image size": [{"size": 16}, {"size": 32}, {"size": 64, "batch_size": 100}],
    "teacher": [{"teacher": arch, "batch_size": 50} for arch in ("resnet10-l", "resnet18", "resnet34")],
    "C-NET": [{"method": "mc-distil", "coordinator": arch} for arch in ("resnet10-s", "resnet32")],
    "processes": [{"processes": 1, "threads": 1}, {"processes": 2, "threads": 1}],
}


def measured(point: dict[str, Any], repeats: int) -> dict[str, Any]:
    """Milliseconds of a step at that point, in this process (which may be one of several started by torchrun)."""
    args = argparse.Namespace(recipe="cifar100", precision="fp32", device="cpu", **point)
    students = {arch: arch for arch in STUDENTS[: point["students"]]}
    trainer = trainer_of(args, point["method"], students=students, **{"teacher.arch": point["teacher"]})
    batch = next(batches_of(trainer))
    macs, moved = work(trainer, batch)
    kinds = {"step": False} | ({"meta_step": True} if trainer.plan.learned else {})
    result: dict[str, Any] = {"macs": macs, "bytes": moved}
    for name, meta in kinds.items():
        times = [step(trainer, batch, meta) for _ in range(2 + repeats)][2:]
        result[f"{name}_ms"] = spread([1e3 * t for t in times])
    if trainer.processes.is_main:
        print(json.dumps(result), flush=True)
    trainer.processes.leave()
    return result


def elsewhere(point: dict[str, Any], repeats: int) -> dict[str, Any]:
    """`measured` in a new process, so that no point is affected by another's memory."""
    run = [sys.executable]
    if point["processes"] > 1:
        run += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={point['processes']}"]
    command = [*run, __file__, "--point", json.dumps(point), "--repeats", str(repeats)]
    environment = os.environ | {"OMP_NUM_THREADS": str(point["threads"])}
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, Any] = json.loads(process.stdout.strip().splitlines()[-1])
    print(point, result, file=sys.stderr)
    return result


def sweep(threads: int, repeats: int) -> dict[str, Any]:
    rows = []
    for name, changes in SWEEPS.items():
        for change in changes:
            point = DEFAULTS | {"threads": threads} | change
            rows.append({"sweep": name, **point, **elsewhere(point, repeats)})
    return {
        "hardware": {
            "name": processor(),
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            "torch": str(torch.__version__),
        },
        "threads": threads,
        "points": rows,
        "formula": fitted([row for row in rows if row["processes"] == 1 and row["threads"] == threads]),
    }


def fitted(rows: list[dict[str, Any]]) -> dict[str, float]:
    """The three coefficients of the formula, and its median and largest relative error."""
    seconds = np.array([row["step_ms"]["median"] / 1e3 for row in rows])
    terms = np.array([[row["macs"] / 1e9, row["bytes"] / 1e9, 1.0] for row in rows])
    slopes, _ = nnls(terms / seconds[:, None], np.ones(len(rows)))
    errors = np.abs(terms @ slopes / seconds - 1)
    return {
        "seconds_per_gmac": float(slopes[0]),
        "seconds_per_gb": float(slopes[1]),
        "constant_seconds": float(slopes[2]),
        "median_error": float(np.median(errors)),
        "largest_error": float(errors.max()),
        "n": len(rows),
    }


def imagenet(teacher: str = "torchvision:resnet34") -> Reckoning:
    """Multiply-adds and bytes for one ImageNet-1k image and five students, by counting."""
    shape, x = (3, 224, 224), torch.zeros(1, 3, 224, 224)
    students = [build(arch, 1000) for arch in STUDENTS]
    frozen = freeze(build(teacher, 1000), (0.5,) * 3, (0.5,) * 3)
    macs = 3 * sum(profile(s, shape).macs for s in students) + profile(frozen, shape).macs
    moved = 4 * sum(activations(s, x) for s in students) + 2 * activations(frozen, x)
    return Reckoning(teacher, macs, moved, held=sum(activations(s, x) for s in students))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--doc", type=Path, help="print docs/scaling.md from these results")
    parser.add_argument("--card", type=Path, help="floor.py's results from a GPU")
    parser.add_argument("--point", type=json.loads, help="measure only this point, in this process")
    args = parser.parse_args()
    if args.point:
        measured(args.point, args.repeats)
    elif args.doc:
        card = json.loads(args.card.read_text(encoding="utf-8")) if args.card else None
        print(page(json.loads(args.doc.read_text(encoding="utf-8")), imagenet(), card), end="")
    else:
        print(text := json.dumps(sweep(args.threads, args.repeats), indent=2))
        if args.out:
            args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

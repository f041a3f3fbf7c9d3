"""Compares the joint training step of a ladder with plain PyTorch scripts, pair by pair in one run.

    python benchmarks/joint_step.py [--repeats 7] [--threads 2] [--out benchmarks/results/NAME.json]

Five students (resnet10-m, -s, -xs, -xxs, -xxxs), teacher resnet10-l, batch 400, 3x32x32, method kd on both sides.
The plain scripts train one student after another in NCHW float32, with per-sample torchvision transforms in a
DataLoader (as many workers as threads), and run the teacher again for each student. Images: the built-in digits at
32x32. A repeat is three of our steps, then three rounds of the plain scripts over all students (in their favour, their
workers have read some batches ahead, untimed). Figures are medians over repeats; ratios are taken pair by pair.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peers import TAU, PlainWay

from mcd_cli.data.loader import Batch
from mcd_cli.engine.hardware import prepare
from mcd_cli.engine.optimizers import step_sizes
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ops import meta_gradient
from mcd_cli.ops.losses import instance_losses
from mcd_cli.recipe.loading import parse_recipe

BATCH = 400
STEPS = 3  # timed at a time
STUDENTS = [f"resnet10-{size}" for size in ("m", "s", "xs", "xxs", "xxxs")]


def trainer_of(method: str, threads: int, coordinator: str) -> Trainer:
    """The engine's trainer, before its first step."""
    recipe = parse_recipe(
        {
            "dataset": "digits",
            "image_size": 32,
            "batch_size": BATCH,
            "method": method,
            "students": STUDENTS,
            "precision": "fp32",
            "teacher": {"arch": "resnet10-l"},
            "augment": {"preset": "cifar"},
            "coordinator": {"arch": coordinator, "every": 20},
        }
    )
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, recipe) as opened:
        run = Run(recipe, opened, RunOptions(device="cpu", threads=threads), lambda event: None)
        return run.trainer(run.plans[-1], rehearsal=True)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call, averaged over several."""
    start = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - start) / times


def batches_of(trainer: Trainer) -> Iterator[Batch]:
    """An endless stream of training batches."""
    return itertools.chain.from_iterable(trainer.loader.epoch(epoch) for epoch in itertools.count())


def joint_against_plain(threads: int, repeats: int, workers: int) -> dict[str, Any]:
    """One of our steps (augmentation, teacher, students, optimiser) compared with five steps of the plain scripts."""
    ours = trainer_of("kd", threads, "resnet32")
    plain = PlainWay(ours, workers)
    batches = batches_of(ours)

    def step() -> None:
        ours.step_index = 1
        ours.step(next(batches))

    images, draws = ours.loader.pixels.take(torch.arange(BATCH)), torch.rand(BATCH, 12)
    rows = []
    for repeat in range(repeats + 1):
        time.sleep(2)  # let the plain scripts' workers finish reading ahead before ours is timed
        row = {
            "ours": seconds(step, STEPS),
            "augment": seconds(lambda: ours.loader.augmentation(images, draws)),
            "plain": seconds(plain.step, STEPS),
        }
        if repeat:  # the first is the warm-up
            rows.append(row)
    return {
        "ours_ms": spread([1e3 * row["ours"] for row in rows]),
        "plain_ms": spread([1e3 * row["plain"] for row in rows]),
        "ours_over_plain": spread([row["ours"] / row["plain"] for row in rows]),
        "augmentation_over_step": spread([row["augment"] / row["ours"] for row in rows]),
    }


def meta_step_cost(threads: int, repeats: int, coordinator: str, every: int = 20) -> dict[str, Any]:
    """The additional time of a meta step (JVP, gradient of L_val, C-NET's backward), relative to the students' step."""
    trainer = trainer_of("mc-distil", threads, coordinator)
    dataset = trainer.loader.dataset
    trainer.loader.dataset = replace(dataset, val=dataset.train[:BATCH])  # the digits' val is smaller than a batch
    batch = next(batches_of(trainer))
    x, y = batch.images, batch.labels
    z_teacher = trainer.teachers["teacher"](x).detach()
    (cnet,) = trainer.coordination.networks

    def students_step() -> None:
        losses = instance_losses(trainer.students(x), y, z_teacher[:, None, None], TAU)
        trainer.optimizer.zero_grad()
        losses.mean(dim=0).sum().backward()
        trainer.optimizer.step()

    def forward() -> None:
        with torch.no_grad():
            cnet(x)

    def meta_step() -> None:
        targets = torch.stack([z_teacher, z_teacher], dim=1)[:, None]
        theta = {name: p.detach().clone() for name, p in trainer.students.named_parameters()}
        c = step_sizes(trainer.optimizer)
        validation = trainer.loader.validation_batch(0)
        v = meta_gradient.validation_gradient(trainer.students, validation.images, validation.labels)
        directional = meta_gradient.directional_losses(
            trainer.students, theta, v, x, lambda z: instance_losses(z, y, targets, TAU)
        )
        trainer.coordination.update((x, z_teacher), directional, c, batch.size)

    rows = []
    for repeat in range(repeats + 1):
        row = {"students": seconds(students_step), "meta": seconds(meta_step), "forward": seconds(forward)}
        if repeat:
            rows.append(row)
    return {
        "coordinator": coordinator,
        "every": every,
        "students_ms": spread([1e3 * row["students"] for row in rows]),
        "meta_ms": spread([1e3 * row["meta"] for row in rows]),
        "coordinator_forward_ms": spread([1e3 * row["forward"] for row in rows]),
        "share_without_coordinator_forward": spread(
            [(row["meta"] - row["forward"]) / every / row["students"] for row in rows]
        ),
        "meta_share_at_every": spread([row["meta"] / every / row["students"] for row in rows]),
    }


def peak_memory(threads: int) -> dict[str, Any]:
    """Peak resident memory of an ordinary and of a meta step, above the memory in use before it (Linux)."""
    mib = {}
    for kind in ("ordinary", "meta"):
        command = [sys.executable, __file__, "--threads", str(threads), "--memory", kind]
        mib[kind] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout) / 1024
    return {f"{kind}_mib": round(value) for kind, value in mib.items()} | {
        "meta_over_ordinary": round(mib["meta"] / mib["ordinary"], 3)
    }


def memory_of_step(kind: str, threads: int) -> int:
    """Peak memory in KiB of three steps of one kind, for a separate process: mc-distil with a ResNet-32 C-NET."""
    trainer = trainer_of("mc-distil", threads, "resnet32")
    batch = next(batches_of(trainer))
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    for _ in range(3):
        trainer.step_index = 0 if kind == "meta" else 1
        trainer.step(batch)
    return _status("VmHWM") - before


def _status(key: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1])


def spread(values: list[float]) -> dict[str, float]:
    """Median, smallest and largest value, and their number."""
    return {
        "median": round(statistics.median(values), 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "n": len(values),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--parts", default="joint,meta,memory", help="measurements to run, separated by commas")
    parser.add_argument(
        "--memory", choices=("ordinary", "meta"), help="print only the peak memory of this kind of step, in KiB"
    )
    args = parser.parse_args()
    if args.memory:
        print(memory_of_step(args.memory, args.threads))
        return
    hardware = prepare("cpu", "fp32", args.threads, True)
    measured: dict[str, Callable[[], Any]] = {
        "joint": lambda: joint_against_plain(args.threads, args.repeats, workers=args.threads),
        "meta": lambda: [meta_step_cost(args.threads, args.repeats, arch) for arch in ("resnet32", "resnet10-s")],
        "memory": lambda: peak_memory(args.threads),
    }
    about = hardware.describe() | {"cores": os.cpu_count(), "python": platform.python_version()}
    result = {"hardware": about} | {part: measured[part]() for part in args.parts.split(",")}
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

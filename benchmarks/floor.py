"""How close the ladder's step is to the machine's limits: the time of its parts, their floors, and its peers.

    python benchmarks/floor.py [--recipe NAME] [--method M] [--precision P] [--coordinator ARCH] [--repeats 5]
                               [--peers plain,torchdistill,double_backward] [--batch-size 400] [--size 32]
                               [--device cpu|cuda] [--threads 2] [--out benchmarks/results/NAME.json]

Images: the built-in digits in the recipe's shape; val has the size of a batch. In each repeat every part and every
peer is timed once, one after another. Figures are medians over repeats; ratios are taken within a repeat.

Floors. Arithmetic: multiply-adds of teacher, students (forward 1, backward 2) and C-NET, divided by the rate of a
large matrix product at the same precision. Memory: bytes of all activations, written once and read once in each
direction, and of weights, gradients and momentum buffers, divided by the measured bandwidth of a copy.
`convolutions_alone`: the sum of the library's convolutions, each timed separately on tensors with the step's layout;
the time of a step if everything else were free.

Peers (peers.py): plain PyTorch scripts for the same ladder, compared with ours with method kd; torchdistill (extra
`bench`), compared with ours with only the first student; a meta step by double backward, with the same gradient. A
peer that is not installed is skipped with a message.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from joint_step import batches_of, seconds, spread
from peers import TAU, PlainWay, TorchDistill, double_backward
from torch import Tensor, nn

from mcd_cli.data.loader import Batch
from mcd_cli.engine.checkpoint import Checkpoints
from mcd_cli.engine.evaluation import predictions
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.engine.trainer import Trainer
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.models.cost import profile
from mcd_cli.models.students import forward_in_chunks
from mcd_cli.ops.losses import instance_losses
from mcd_cli.recipe.loading import load_recipe
from mcd_cli.recipe.schema import Recipe

PEERS = ("plain", "torchdistill", "double_backward")
WAIT = 2  # seconds for a peer's workers to finish reading ahead before ours is timed


def recipe_of(args: argparse.Namespace, method: str, **more: Any) -> Recipe:
    """The requested recipe on the built-in digits, with an untrained teacher whose logits are not cached."""
    overrides: dict[str, Any] = {"dataset": "digits", "image_size": args.size, "batch_size": args.batch_size}
    overrides |= {"method": method, "precision": args.precision, "coordinator.arch": args.coordinator}
    overrides |= {"teacher.file": None, "teacher.pretrained": False, "teacher.views": 0}
    return load_recipe(args.recipe, overrides | more)


def trainer_of(args: argparse.Namespace, method: str, **more: Any) -> Trainer:
    """The engine's trainer for a method, on digits in the recipe's shape; val has the size of a batch."""
    recipe = recipe_of(args, method, **more)
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, recipe) as opened:
        run = Run(recipe, opened, RunOptions(device=args.device, threads=args.threads), lambda event: None)
        trainer = run.trainer(run.plans[-1], rehearsal=True)
    dataset = trainer.loader.dataset
    trainer.loader.dataset = replace(dataset, val=dataset.train[: args.batch_size])
    for is_meta in (True, False) * trainer.graphs.num_first:  # until both kinds of steps are replayed as CUDA graphs
        step(trainer, next(batches_of(trainer)), is_meta)
    return trainer


def timed(trainer: Trainer, work: Callable[[], object]) -> float:
    """Seconds of one call, including the device's work."""

    def whole() -> None:
        work()
        if trainer.hardware.device.type == "cuda":
            torch.cuda.synchronize()

    return seconds(whole)


def step(trainer: Trainer, batch: Batch, meta: bool = False) -> float:
    """Seconds of one training step without augmentation."""
    trainer.step_index = 0 if meta else 1
    return timed(trainer, lambda: trainer.step(batch))


def whole(trainer: Trainer) -> None:
    """One training step including batch order, loading of pixels and augmentation."""
    trainer.step_index = 1
    trainer.step(next(batches_of(trainer)))


def parts(trainer: Trainer, batch: Batch, folder: Path) -> dict[str, float]:
    """Seconds of each part of training, measured separately."""
    x, y = batch.images, batch.labels
    draws = torch.rand(len(batch.ids), 12)
    pixels = trainer.loader.pixels.take(batch.ids.cpu())
    teacher = trainer.teachers["teacher"]
    times = {"augment": timed(trainer, lambda: trainer.loader.augmentation(pixels, draws))}
    with torch.no_grad(), trainer.hardware.autocast():
        times["teacher"] = timed(trainer, lambda: forward_in_chunks(teacher, x))
        targets = forward_in_chunks(teacher, x).float()[:, None, None]
    losses: list[Tensor] = []

    def forward() -> None:
        with trainer.hardware.autocast():
            losses[:] = [instance_losses(trainer.students(x), y, targets, TAU).mean(dim=0).sum()]

    trainer.optimizer.zero_grad()
    times["students_forward"] = timed(trainer, forward)
    times["students_backward"] = timed(trainer, lambda: losses[0].backward())  # type: ignore[no-untyped-call]
    times["optimizer"] = timed(trainer, trainer.optimizer.step)
    times["whole_step"] = step(trainer, batch)
    for coordinator in trainer.coordination.networks:
        inputs = torch.rand(len(x), len(trainer.students.names) * len(trainer.loss_names) + 1, device=x.device)
        with torch.no_grad(), trainer.hardware.autocast():
            times["coordinator_forward"] = timed(trainer, partial(coordinator, x, inputs))
        times["whole_meta_step"] = step(trainer, batch, meta=True)
    val = trainer.loader.dataset.val
    times["evaluation_of_a_batch"] = timed(trainer, lambda: predictions(trainer.students, trainer.loader, val))
    checkpoints = Checkpoints(folder)
    times["checkpoint"] = timed(trainer, lambda: checkpoints.save(trainer.state_dict()))
    return times


def coordinator_that_looks(trainer: Trainer) -> list[Coordinator]:
    """C-NET, if there is one and its input is images; one whose input is losses costs next to nothing."""
    return [coordinator for coordinator in trainer.coordination.networks if not coordinator.sees_losses]


def convolutions(trainer: Trainer, batch: Batch) -> list[Callable[[], object]]:
    """A call for each convolution of a step: students forward and backward, teacher and C-NET forward."""
    calls: list[Callable[[], object]] = []

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        is_image = inputs[0].shape[1] == batch.images.shape[1]
        x, w = (torch.rand_like(t) for t in (inputs[0], module.weight))  # with the same memory layouts
        convolved = partial(F.conv2d, stride=module.stride, padding=module.padding, groups=module.groups)
        if not torch.is_grad_enabled():
            calls.append(torch.no_grad()(partial(convolved, x, w)))
            return
        variables = [w.requires_grad_()] + [x.requires_grad_()] * (not is_image)
        slope = torch.rand_like(output)
        calls.append(lambda: torch.autograd.grad(convolved(x, w), variables, slope))

    teachers, looking = list(trainer.teachers.values()), coordinator_that_looks(trainer)
    modules = [m for model in (trainer.students, *teachers, *looking) for m in model.modules()]
    hooks = [m.register_forward_hook(note) for m in modules if isinstance(m, nn.Conv2d)]
    trainer.students(batch.images)
    with torch.no_grad():
        for teacher in teachers:
            forward_in_chunks(teacher, batch.images)
        for coordinator in looking:
            coordinator(batch.images)
    for hook in hooks:
        hook.remove()
    return calls


class Peers:
    """The peers that ours is compared with, as requested by --peers and if installed."""

    def __init__(self, args: argparse.Namespace, trainer: Trainer) -> None:
        self.trainer = trainer
        self.kd = trainer_of(args, "kd")
        self.pairs: dict[str, tuple[Trainer, PlainWay | TorchDistill]] = {}
        workers = args.threads or torch.get_num_threads()
        self.names = [name for name in args.peers.split(",") if name in PEERS]
        if "plain" in self.names:
            self.pairs["plain"] = self.kd, PlainWay(self.kd, workers)
        if "torchdistill" in self.names and TorchDistill.available:
            name, arch = next(iter(trainer.students.archs.items()))
            single = trainer_of(args, "kd", students={name: arch})
            self.pairs["torchdistill"] = single, TorchDistill(single, workers)
        elif "torchdistill" in self.names:
            print("torchdistill is not installed and is skipped; pip install 'mcd-cli[bench]'", file=sys.stderr)

    def times(self, batch: Batch) -> dict[str, float]:
        """Seconds for ours and for each peer, pair by pair; both include their augmentation."""
        times = {"kd": step(self.kd, batch)}
        for name, (ours, peer) in self.pairs.items():
            time.sleep(WAIT)
            times[f"ours_beside_{name}"] = timed(ours, partial(whole, ours))
            times[name] = timed(ours, peer.step)
        if "double_backward" in self.names and self.trainer.plan.learned:
            times["double_backward"] = timed(self.trainer, lambda: double_backward(self.trainer, batch))
        return times


def rates(trainer: Trainer) -> tuple[float, float]:
    """The machine's current rates: multiply-adds per second of a matrix product, bytes per second of a copy."""
    dtype = torch.bfloat16 if trainer.hardware.precision == "bf16" else torch.float32
    n = 2048 if trainer.hardware.device.type == "cpu" else 8192
    a = torch.randn(n, n, device=trainer.hardware.device, dtype=dtype)
    big = torch.empty(2**26, dtype=torch.float32, device=trainer.hardware.device)
    out = torch.empty_like(big)
    macs = n**3 / min(timed(trainer, lambda: a @ a) for _ in range(5))
    return macs, 2 * big.nbytes / min(timed(trainer, lambda: out.copy_(big)) for _ in range(3))


def work(trainer: Trainer, batch: Batch) -> tuple[int, int]:
    """Lower bounds for an ordinary step: multiply-adds, and bytes moved."""
    shape = tuple(batch.images.shape[1:])
    students = list(trainer.students.networks.values())
    macs = 3 * sum(profile(s, shape).macs for s in students) + profile(trainer.teachers["teacher"], shape).macs
    moved = sum(activations(s, batch.images) * 4 for s in students)  # written and read, forward and backward
    moved += sum(activations(model, batch.images) * 2 for model in trainer.teachers.values())
    for coordinator in coordinator_that_looks(trainer):
        macs += profile(coordinator, shape).macs
        moved += activations(coordinator, batch.images) * 2
    weights = sum(p.numel() * p.element_size() for s in students for p in s.parameters())
    return len(batch.ids) * macs, moved + 8 * weights


def activations(model: nn.Module, images: Tensor) -> int:
    """Bytes of the outputs of all convolutions, BatchNorms and linear layers."""
    total = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.nbytes

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, kinds)]
    was_training = model.training
    with torch.no_grad():
        model.eval()(images)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


def ratios(trainer: Trainer, row: dict[str, float], macs: int, moved: int) -> dict[str, float]:
    """The ratios of one repeat; `mean_step` is an ordinary step plus its share of a meta step."""
    mean, learned = row["whole_step"], "whole_meta_step" in row
    if learned:
        mean += (row["whole_meta_step"] - row["whole_step"]) / trainer.plan.coordinator.every
    floor = max(macs / row["macs_per_second"], moved / row["bytes_per_second"])
    result = {"images_per_second": trainer.loader.batch_size / mean, "step_over_floor": row["whole_step"] / floor}
    result["convolutions_over_floor"] = row["convolutions_alone"] / floor  # the ratio if everything else were free
    if learned:
        result["mean_step_over_kd"] = mean / row["kd"]
    for peer in ("plain", "torchdistill"):
        if peer in row:
            result[f"ours_over_{peer}"] = row[f"ours_beside_{peer}"] / row[peer]
    if "double_backward" in row:
        result["meta_step_over_double_backward"] = row["whole_meta_step"] / row["double_backward"]
    return result


def table(rows: list[dict[str, float]], scale: float = 1.0) -> dict[str, dict[str, float]]:
    return {name: spread([scale * row[name] for row in rows]) for name in rows[0]}


def machine(trainer: Trainer) -> dict[str, Any]:
    return trainer.hardware.describe() | {"cores": os.cpu_count(), "python": platform.python_version()}


def options(doc: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks of a recipe share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar100-resnet10-l")
    parser.add_argument("--method", default="mc-distil")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--coordinator", default="resnet32")
    parser.add_argument("--batch-size", type=int, default=400)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    return parser


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--peers", default=",".join(PEERS))
    args = parser.parse_args()
    trainer = trainer_of(args, args.method)
    peers = Peers(args, trainer)
    batch = next(batches_of(trainer))
    macs, moved = work(trainer, batch)
    alone = convolutions(trainer, batch)
    rows, speeds = [], []
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(args.repeats + 1):
            row = parts(trainer, batch, Path(folder)) | peers.times(batch)
            with trainer.hardware.autocast():
                row["convolutions_alone"] = sum(timed(trainer, call) for call in alone)
            if repeat:  # the first is the warm-up
                rows.append(row)
                speeds.append(dict(zip(("macs_per_second", "bytes_per_second"), rates(trainer), strict=True)))
    packages = {name: version(name) for name in ("torchvision", "torchdistill") if _installed(name)}
    result: dict[str, Any] = {
        "hardware": machine(trainer),
        "packages": packages,
        "recipe": args.recipe,
        "method": args.method,
        "coordinator": args.coordinator if trainer.plan.learned else None,
        "students": dict(trainer.students.archs),
        "batch": list(batch.images.shape),
        "parts_ms": table(rows, 1e3),
        "floor": {"macs": macs, "bytes": moved}
        | {"gmacs_per_second": table(speeds, 1e-9)["macs_per_second"]}
        | {"gb_per_second": table(speeds, 1e-9)["bytes_per_second"]}
        | {"arithmetic_ms": spread([1e3 * macs / s["macs_per_second"] for s in speeds])}
        | {"memory_ms": spread([1e3 * moved / s["bytes_per_second"] for s in speeds])},
        "ratios": table([ratios(trainer, row | s, macs, moved) for row, s in zip(rows, speeds, strict=True)]),
    }
    print(text := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


def _installed(package: str) -> bool:
    try:
        return bool(version(package))
    except ImportError:
        return False


if __name__ == "__main__":
    main()

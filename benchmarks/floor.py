"""How near to what the machine can do: the ladder's step by parts, beside its arithmetic and memory floors.

    python benchmarks/floor.py [--recipe NAME] [--method M] [--precision P] [--coordinator ARCH] [--repeats 5]
                               [--device cpu|cuda] [--threads 2] [--images 50000] [--fast]
                               [--out benchmarks/results/NAME.json]

Images: the built-in digits at the recipe's size, or `--images` random ones in 100 classes, a tenth of them V (50000 is
the size of CIFAR-100's training set); batch 400 unless set. Times are medians over repeats in one run, the parts one
after another within each repeat. Floors: multiply-adds of teacher, students (forward 1, backward 2) and C-NET over the
rate of a large matrix product at the same precision; bytes of all activations written once and read once in each
direction, and of weights, gradients and momenta, over the measured bandwidth of a copy. The ratio is of the whole step
to the larger floor. Beside them: a meta step by double backward (the same gradient), pair by pair.

On a GPU also, pair by pair: a whole epoch (batches, augmentation, steps, meta steps, evaluation on V) with CUDA graphs
and without, and what 500 such epochs would take.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from joint_step import batches_of, seconds, spread
from torch import Tensor, nn
from torch.func import functional_call

from mcd_cli.cost import profile
from mcd_cli.data.augment import PRESETS
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.loader import Batch, Loader
from mcd_cli.engine.checkpoint import Checkpoints
from mcd_cli.engine.evaluation import predictions
from mcd_cli.engine.graph import Replayed
from mcd_cli.engine.run import Options, Run
from mcd_cli.engine.trainer import Trainer
from mcd_cli.losses import cross_entropy, instance_losses
from mcd_cli.models.students import in_pieces
from mcd_cli.recipe import load_recipe
from mcd_cli.run_folder import RunFolder

TAU = 2.0


def trainer_of(asked: argparse.Namespace, *, eager: bool = False) -> Trainer:
    """The engine's own trainer of the recipe's method, on digits in the recipe's shape or on random images."""
    overrides: dict[str, Any] = {"dataset": "digits", "image_size": asked.size, "batch_size": asked.batch_size}
    overrides |= {"method": asked.method, "precision": asked.precision, "coordinator.arch": asked.coordinator}
    overrides |= {"deterministic": not asked.fast}
    recipe = load_recipe(asked.recipe, overrides | {"teacher.file": None, "teacher.pretrained": False})
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(folder, recipe) as opened:
        options = Options(device=asked.device, threads=asked.threads, eager=eager)
        run = Run(recipe, opened, options, lambda event: print(event, file=sys.stderr))
        if asked.images:
            run.dataset = random_images(run.dataset, asked.images)
            run.loader = Loader(
                run.dataset,
                batch_size=recipe.batch_size,
                seed=0,
                augmentation=PRESETS[recipe.augment.preset],
                augment_seed=0,
                device=run.hardware.device,
            )
        trainer = run._trainer(run.plans[-1], rehearsal=True)
    trainer.graphs.warn = lambda line: print(line, file=sys.stderr)
    return trainer


def random_images(like: Dataset, num_images: int) -> Dataset:
    shape, num_val = (num_images, *like.input_shape), num_images // 10
    return replace(
        like,
        classes=tuple(f"class {c}" for c in range(100)),
        images=torch.randint(0, 256, shape, dtype=torch.uint8),
        labels=torch.randint(0, 100, (num_images,)),
        train=torch.arange(num_images - num_val),
        val=torch.arange(num_images - num_val, num_images),
        test=torch.arange(0),
        mislabelled=torch.zeros(num_images, dtype=torch.bool),
    )


def warm_up(trainer: Trainer, batch: Batch) -> None:
    """Until both kinds of steps, and the evaluation, are replayed."""
    for number in (0, 1) * max(1, trainer.graphs.num_first):
        trainer.number = number
        trainer.step(batch)
        val = trainer.loader.dataset.val
        predictions(trainer.students, trainer.loader, val, trainer.evaluated)


def epoch(trainer: Trainer) -> None:
    """One as the run has it, its checkpoint apart."""
    trainer.number = trainer.epochs_done = 0
    for _ in trainer._steps():
        pass
    trainer.end_epoch()


def timed(trainer: Trainer, work: Callable[[], object]) -> float:
    """Seconds of one call, the device's work included."""

    def whole() -> None:
        work()
        if trainer.hardware.device.type == "cuda":
            torch.cuda.synchronize()

    return seconds(whole)


def parts(trainer: Trainer, batch: Batch, folder: Path) -> dict[str, float]:
    """Seconds of each part of training, measured by itself."""
    x, y = batch.images, batch.labels
    draws = torch.rand(len(batch.ids), 12)
    pixels = trainer.loader.pixels.take(batch.ids.cpu())
    teacher = trainer.teachers["teacher"]
    found = {"augment": timed(trainer, lambda: trainer.loader.augmentation(pixels, draws))}
    with torch.no_grad(), trainer.hardware.autocast():
        found["teacher"] = timed(trainer, lambda: in_pieces(teacher, x))
        guides = in_pieces(teacher, x).float()[:, None, None]
    held: list[Tensor] = []

    def forward() -> None:
        with trainer.hardware.autocast():
            held[:] = [instance_losses(trainer.students(x), y, guides, TAU).mean(dim=0).sum()]

    trainer.optimizer.zero_grad()
    found["students_forward"] = timed(trainer, forward)
    found["students_backward"] = timed(trainer, lambda: held[0].backward())  # type: ignore[no-untyped-call]
    found["optimizer"] = timed(trainer, trainer.optimizer.step)
    trainer.number = 1
    found["whole_step"] = timed(trainer, lambda: trainer.step(batch))
    if trainer.coordinator is not None:
        coordinator = trainer.coordinator
        with torch.no_grad():
            found["coordinator_forward"] = timed(trainer, lambda: coordinator(x))
        trainer.number = 0
        found["whole_meta_step"] = timed(trainer, lambda: trainer.step(batch))
        found["double_backward_meta_step"] = timed(trainer, lambda: double_backward(trainer, batch, guides))
    val = trainer.loader.dataset.val
    found["evaluation_per_400"] = timed(trainer, lambda: predictions(trainer.students, trainer.loader, val)) * 400
    found["evaluation_per_400"] /= len(val)
    checkpoints = Checkpoints(folder)
    found["checkpoint"] = timed(trainer, lambda: checkpoints.save(trainer.tensors(), trainer.position()))
    return found


def graphs_against_eager(asked: argparse.Namespace, graphed: Trainer) -> dict[str, Any]:
    """Whole epochs, in turn."""
    eager = trainer_of(asked, eager=True)
    warm_up(eager, next(batches_of(eager)))
    rows = []
    for repeat in range(asked.repeats + 1):
        row = {name: timed(trainer, lambda t=trainer: epoch(t)) for name, trainer in (("g", graphed), ("e", eager))}  # type: ignore[misc]
        if repeat:  # the first pays for what the warm-up has left
            rows.append(row)
    num_steps = graphed.loader.num_steps
    return {
        "replayed": graphed_parts(graphed),
        "epoch_steps": num_steps,
        "epoch_graphed_s": spread([row["g"] for row in rows]),
        "epoch_eager_s": spread([row["e"] for row in rows]),
        "graphed_over_eager": spread([row["g"] / row["e"] for row in rows]),
        "step_graphed_ms": spread([1e3 * row["g"] / num_steps for row in rows]),
        "minutes_for_500_epochs": spread([500 * row["g"] / 60 for row in rows]),
    }


def graphed_parts(trainer: Trainer) -> list[str]:
    """What is replayed by now; the others are run as written, for the reason on stderr."""
    parts = (trainer.ordinary_step, trainer.meta_step, trainer.evaluated)
    return [part.name for part in parts if isinstance(part, Replayed) and part.replay is not None]


def double_backward(trainer: Trainer, batch: Batch, guides: Tensor) -> None:
    """The usual way to C-NET's gradient, with the real step it needs: a graph through the students' gradient."""
    assert trainer.coordinator is not None
    theta = {n: p.detach().clone().requires_grad_() for n, p in trainer.students.named_parameters()}
    z = _pure(trainer.students, theta, batch.images)
    both = torch.cat([guides, guides], dim=2) if len(trainer.symbols) == 3 else guides
    w = trainer.coordinator.weigh(trainer.coordinator(batch.images))
    loss = (w * instance_losses(z, batch.labels, both, TAU)).sum() / batch.size
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    after = {n: p - 0.05 * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
    val = trainer.loader.validation_batch(0)
    l_val = cross_entropy(_pure(trainer.students, after, val.images), val.labels).mean(dim=0).sum()
    torch.autograd.grad(l_val, list(trainer.coordinator.parameters()))


def _pure(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    out: Tensor = functional_call(model, {**parameters, **buffers}, (x,))
    return out


def floors(trainer: Trainer, batch: Batch) -> dict[str, float]:
    """Seconds that an ordinary step cannot beat at this machine's measured rates."""
    n, shape = len(batch.ids), tuple(batch.images.shape[1:])
    students = list(trainer.students.networks.values())
    macs = 3 * sum(_macs(s, shape) for s in students) + _macs(trainer.teachers["teacher"], shape)
    if trainer.coordinator is not None:
        macs += _macs(trainer.coordinator, shape)
    dtype = torch.bfloat16 if trainer.hardware.precision == "bf16" else torch.float32
    a = torch.randn(2048, 2048, device=trainer.hardware.device, dtype=dtype)
    rate = 2048**3 / min(timed(trainer, lambda: a @ a) for _ in range(10))  # multiply-adds a second
    big = torch.empty(2**26, dtype=torch.float32, device=trainer.hardware.device)
    out = torch.empty_like(big)
    bandwidth = 2 * big.nbytes / min(timed(trainer, lambda: out.copy_(big)) for _ in range(5))
    moved = sum(_activations(s, batch) * 4 for s in students)  # written and read, forward and backward
    moved += sum(_activations(model, batch) * 2 for model in trainer.teachers.values())
    weights = sum(p.numel() * p.element_size() for s in students for p in s.parameters())
    return {
        "macs_per_image": macs,
        "gmacs_per_second": rate / 1e9,
        "gb_per_second": bandwidth / 1e9,
        "arithmetic": n * macs / rate,
        "memory": (moved + 8 * weights) / bandwidth,
    }


def _macs(model: nn.Module, shape: tuple[int, ...]) -> int:
    return profile(model, shape).macs


def _activations(model: nn.Module, batch: Batch) -> int:
    """Bytes of the outputs of convolutions, BatchNorms and linear layers."""
    total = 0

    def add(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal total
        total += output.nbytes

    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.Linear)
    hooks = [m.register_forward_hook(add) for m in model.modules() if isinstance(m, kinds)]
    was_training = model.training
    with torch.no_grad():
        model.eval()(batch.images)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="cifar100")
    parser.add_argument("--method", default="mc-distil")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--coordinator", default="resnet32")
    parser.add_argument("--batch-size", type=int, default=400)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--images", type=int, default=0)
    parser.add_argument("--fast", action="store_true")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    trainer = trainer_of(asked)
    batch = next(batches_of(trainer))
    warm_up(trainer, batch)
    pairs = graphs_against_eager(asked, trainer) if trainer.graphs.recorder is not None else {}
    with tempfile.TemporaryDirectory() as folder:
        parts(trainer, batch, Path(folder))  # warm-up
        rows = [parts(trainer, batch, Path(folder)) for _ in range(asked.repeats)]
    floor = floors(trainer, batch)
    step = spread([row["whole_step"] for row in rows])["median"]
    result: dict[str, Any] = {
        "hardware": trainer.hardware.describe() | {"cores": os.cpu_count(), "python": platform.python_version()},
        "recipe": asked.recipe,
        "method": asked.method,
        "coordinator": asked.coordinator if trainer.coordinator is not None else None,
        "students": dict(trainer.students.archs),
        "batch": [len(batch.ids), *batch.images.shape[1:]],
        "images_per_second": round(len(batch.ids) / step, 1),
        "parts_ms": {name: spread([1e3 * row[name] for row in rows]) for name in rows[0]},
        "floors": {name: round(value, 4) for name, value in floor.items()},
        "step_over_larger_floor": round(step / max(floor["arithmetic"], floor["memory"]), 2),
    } | pairs
    if trainer.coordinator is not None:
        ratios = [row["whole_meta_step"] / row["double_backward_meta_step"] for row in rows]
        result["meta_step_over_double_backward"] = spread(ratios)
    print(text := json.dumps(result, indent=2))
    if asked.out:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

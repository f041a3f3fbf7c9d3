"""How long a checkpoint takes: saving the paper's ladder with its ResNet-32 C-NET, compared with a training step.

    python benchmarks/checkpoint.py [--repeats 7] [--threads 2] [--folder .] [--out benchmarks/results/NAME.json]

Five students, teacher resnet10-l, batch 400, 3x32x32, mc-distil. A save includes everything from the tensors on the
device to a synced and renamed file in the folder. An epoch of CIFAR-100 has 112 steps, and a run saves at least once
per epoch.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

from joint_step import batches_of, seconds, spread, trainer_of

from mcd_cli.engine.checkpoint import Checkpoints
from mcd_cli.engine.hardware import prepare

STEPS_OF_EPOCH = 112


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, default=Path())
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    hardware = prepare("cpu", "fp32", args.threads, True)
    trainer = trainer_of("mc-distil", args.threads, "resnet32")
    batches = batches_of(trainer)
    trainer.step(next(batches))
    for name in trainer.students.names:  # a checkpoint also contains each student's best weights so far
        trainer.best_weights[name] = trainer.current(name)
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        checkpoints = Checkpoints(Path(folder, "checkpoint"))
        for _ in range(args.repeats):
            step = seconds(lambda: trainer.step(next(batches)))
            save = seconds(lambda: checkpoints.save(trainer.state_dict()))
            rows.append((step, save))
        size = max(path.stat().st_size for path in checkpoints.folder.iterdir())
    result = {
        "hardware": hardware.describe() | {"cores": os.cpu_count(), "python": platform.python_version()},
        "state_bytes": size,
        "save_ms": spread([1e3 * save for _, save in rows]),
        "step_ms": spread([1e3 * step for step, _ in rows]),
        "share_once_an_epoch": spread([save / (STEPS_OF_EPOCH * step) for step, save in rows]),
        "share_every_20_steps": spread([save / (20 * step) for step, save in rows]),
    }
    print(text := json.dumps(result, indent=2))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

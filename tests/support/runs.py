"""Small real runs: scikit-learn's digits, tiny students, a second or two each."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mcd_cli.engine import teacher_logits, trainer
from mcd_cli.engine.events import Event, StepEnded
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.methods.base import TEACHER
from mcd_cli.recipe.loading import parse_recipe
from mcd_cli.recipe.schema import Recipe
from mcd_cli.registry import Row, Table

Register = Callable[[Table[Any], str, Row], None]  # the fixture `register`

TINY: dict[str, Any] = {
    "dataset": "digits",
    "image_size": 8,  # as they are
    "batch_size": 256,
    "precision": "fp32",  # the same arithmetic on every processor
    "epochs": 2,
    "students": ["resnet10-xxs", "resnet10-xxxs"],
    "teacher": {"arch": "resnet10-xs", "epochs": 2, "lr": 0.05},
    "warm_start": {"epochs": 1, "lr": 0.05},
    "augment": {"preset": "digits"},
    "coordinator": {"arch": "resnet10-xxxs", "every": 2},
}


def tiny_recipe(**changes: Any) -> Recipe:
    """A run of a second or two on the digits: 4 steps an epoch."""
    merged = dict(TINY)
    for key, value in changes.items():
        merged[key] = {**merged[key], **value} if isinstance(merged.get(key), dict) else value
    return parse_recipe(merged)


def make_run(recipe: Recipe, folder: RunFolder, emit: Callable[[Event], None] = lambda event: None) -> Run:
    return Run(recipe, folder, RunOptions(device="cpu", threads=1), emit)


def train(recipe: Recipe, out: Path, emit: Callable[[Event], None] = lambda event: None) -> Ladder:
    """A whole run into a new folder."""
    with RunFolder.create(str(out), recipe) as folder:
        return _whole(make_run(recipe, folder, emit))


def timing(ms: Any, **more: Any) -> dict[str, Any]:
    """A manifest's latency entry: p90 and p99 are twice the median."""
    slow = ms * 2 if isinstance(ms, float) else ms
    entry = {"format": "onnx", "batch": 1, "p50_ms": ms, "p90_ms": slow, "p99_ms": slow, "warmup": 20, "runs": 200}
    return entry | more


def teachers_passes(patch: pytest.MonkeyPatch, counts: Callable[[nn.Module], bool] = lambda network: True) -> list[int]:
    """A list that grows by the images of each call of a teacher during training, of those that count."""
    found: list[int] = []
    plain = trainer.forward_in_chunks

    def note(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if counts(network):
            found.append(len(x))
        return plain(network, x)

    patch.setattr(trainer, "forward_in_chunks", note)
    patch.setattr(teacher_logits, "forward_in_chunks", note)
    return found


def go_on(out: Path, emit: Callable[[Event], None] = lambda event: None) -> Ladder:
    """Resume the run in that folder."""
    folder, recipe = RunFolder.open(str(out))
    with folder:
        return _whole(make_run(recipe, folder, emit))


def _whole(run: Run) -> Ladder:
    ladder = run.train()
    assert ladder is not None
    return ladder


def signal_at(stage: str, step: int) -> Callable[[Event], None]:
    """A listener that sends this process SIGTERM after that step."""

    def listen(event: Event) -> None:
        if event == StepEnded(stage, step):
            os.kill(os.getpid(), signal.SIGTERM)

    return listen


def finished(folder: Path) -> dict[str, bytes | object]:
    """What a run leaves, but for when it was made."""
    ladder = json.loads((folder / "ladder.json").read_text())
    ladder.pop("created")
    files = sorted((folder / "students").iterdir())
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return {
        "ladder": ladder,
        # the first run trains the teacher, the others find it in the cache
        "metrics": [line for line in lines if json.loads(line)["stage"] != TEACHER],
        "predictions": (folder / "predictions.safetensors").read_bytes(),
        **{path.name: path.read_bytes() for path in files},
    }

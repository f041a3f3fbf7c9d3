"""Measures onnxruntime's latency on this machine, of architectures or of a run's files (`mcd profile --latency`)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mcd_cli.errors import UserError
from mcd_cli.ladder.latency import hardware_key, measure, remembered
from mcd_cli.ladder.manifest import Ladder, update
from mcd_cli.ladder.schema import StudentEntry, Timing
from mcd_cli.ladder.variants import FLOAT32, variants

LARGEST_BATCH = 4096


@dataclass(frozen=True)
class Conditions:
    """How latencies are measured; `here` identifies the hardware."""

    batches: tuple[int, ...]
    threads: int
    warmup: int
    runs: int

    @property
    def here(self) -> str:
        return hardware_key(self.threads)


def parse_batches(text: str) -> tuple[int, ...]:
    """`8,64` → (1, 8, 64): batch 1 is always timed, because `select` limits it. Raises UserError."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdigit() and 0 < int(part[:9]) <= LARGEST_BATCH for part in parts):
        raise UserError(f"--batch {text!r} is not a list of sizes from 1 to {LARGEST_BATCH}; write it like 1,8,64")
    return tuple(dict.fromkeys([1, *(int(part) for part in parts)]))


def of_architecture(arch: str, shape: tuple[int, int, int], num_classes: int, how: Conditions) -> list[Timing]:
    """Timings of a freshly initialised network: latency does not depend on the weights' values."""
    from mcd_cli.formats.onnx_file import to_onnx
    from mcd_cli.models import build

    return _timings({FLOAT32: to_onnx(build(arch, num_classes).eval(), shape, {})}, how)


def of_student(student: StudentEntry, ladder: Ladder, how: Conditions) -> list[Timing]:
    """Timings of a student's exported files; without a float32 file, of its weights exported in memory."""
    from mcd_cli.formats.onnx_file import to_onnx

    files: dict[str, Path | bytes] = {
        variant.format: variant.file for variant in variants(student) if variant.file is not None
    }
    if FLOAT32 not in files:
        files = {FLOAT32: to_onnx(student.load(), ladder.dataset.input_shape, {}), **files}
    return _timings(files, how)


def _timings(files: dict[str, Path | bytes], how: Conditions) -> list[Timing]:
    timings: list[Timing] = []
    for batch in how.batches:
        times = measure(files, batch=batch, threads=how.threads, warmup=how.warmup, runs=how.runs)
        timings += times.values()
    return timings


def keep(ladder: Ladder, timings: dict[str, list[Timing]], how: Conditions, say: Callable[[str], None]) -> None:
    """Save the latencies in the manifest under this hardware; says so if the run's folder is read-only."""
    assert ladder.folder is not None
    if not os.access(ladder.folder, os.W_OK):
        say(f"{ladder.folder} is read-only: the latencies are not saved in it")
        return

    def with_latency(old: StudentEntry) -> StudentEntry:
        if old.name not in timings:
            return old
        return replace(old, latency=remembered(old, timings[old.name], how.here))

    update(ladder.folder, with_latency)


def document(timings: Sequence[Timing], how: Conditions) -> dict[str, Any]:
    """The timings (milliseconds) for --json, with the hardware they were measured on."""
    return {"hardware": how.here, "timings": [asdict(timing) for timing in timings]}

"""How long one call of onnxruntime takes on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from mcd_cli.ladder.schema import StudentEntry, Timing
from mcd_cli.machine import processor

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

    from mcd_cli.ladder.session import Images

WARMUP, RUNS = 20, 200  # calls; also the minimum
BLOCK = 20  # calls of one file before it is the next file's turn


def hardware_key(threads: int) -> str:
    """The hardware that a timing is valid for: processor, threads, onnxruntime's version. Imports nothing heavy."""
    return f"{processor()}, {threads} thread{'s' * (threads > 1)}, onnxruntime {version('onnxruntime')}"


def recorded(student: StudentEntry, format: str, batch: int, on: str) -> Timing | None:
    """The recorded timing of that file on that hardware, if there is one."""
    matches = [t for t in student.latency.get(on, ()) if (t.format, t.batch) == (format, batch)]
    return matches[-1] if matches else None


def remembered(student: StudentEntry, timings: Sequence[Timing], on: str) -> dict[str, tuple[Timing, ...]]:
    """The student's latencies with these timings, which replace older ones of the same files and batches."""
    new = {(t.format, t.batch) for t in timings}
    kept = [t for t in student.latency.get(on, ()) if (t.format, t.batch) not in new]
    ordered = sorted([*kept, *timings], key=lambda t: (t.format != "onnx", t.format, t.batch))
    return student.latency | {on: tuple(ordered)}


def measure(
    files: Mapping[str, Path | bytes], *, batch: int = 1, threads: int = 1, warmup: int = WARMUP, runs: int = RUNS
) -> dict[str, Timing]:
    """Time ONNX files, by format, on random images. They take turns in blocks, so that other load affects all alike.

    Returns milliseconds of a whole call, on the CPU, with `threads` threads within an operator and none between.
    """
    from mcd_cli.ladder.session import cpu_session

    calls: dict[str, Callable[[Images], object]] = {}
    shape: tuple[int, ...] = ()
    for format, file in files.items():
        session = cpu_session(file, threads)
        (images,) = session.get_inputs()
        shape = tuple(images.shape[1:])
        calls[format] = partial(_run, session, images.name)
    return measure_calls(calls, (batch, *shape), warmup=warmup, runs=runs)


def measure_calls(
    calls: Mapping[str, Callable[[Images], object]],
    shape: tuple[int, ...],
    *,
    warmup: int = WARMUP,
    runs: int = RUNS,
) -> dict[str, Timing]:
    """Time functions of images [n, 3, H, W] (`shape`), by format, as `measure` does."""
    import numpy as np

    images = np.random.default_rng(0).random(shape, dtype=np.float32)
    for call in calls.values():
        for _ in range(warmup):
            call(images)
    taken: dict[str, list[float]] = {format: [] for format in calls}
    for start in range(0, runs, BLOCK):
        for format, call in calls.items():
            for _ in range(min(BLOCK, runs - start)):
                begun = time.perf_counter_ns()
                call(images)
                taken[format].append((time.perf_counter_ns() - begun) / 1e6)
    timings = {}
    for format, values in taken.items():
        p50, p90, p99 = (round(float(p), 6) for p in np.percentile(values, [50, 90, 99]))
        timings[format] = Timing(
            format=format, batch=shape[0], p50_ms=p50, p90_ms=p90, p99_ms=p99, warmup=warmup, runs=runs
        )
    return timings


def _run(session: InferenceSession, name: str, images: Images) -> object:
    return session.run(None, {name: images})

"""Finds convolutions that crash, overwrite memory or compute wrong values on this processor.

    python benchmarks/convolutions.py [--seconds 900] [--isa native --isa AVX2] [--guarded] [--out FILE.json]

Each shape runs forward and backward in a forked process whose heap is checked by glibc (MALLOC_CHECK_=3; Linux only),
and its output and both gradients are compared with float64. Shapes share a process; if the process dies, its shapes
run again, each in a separate process. The grid is shuffled by --seed and tried for --seconds, once for each --isa
(ONEDNN_MAX_CPU_ISA; `native` leaves it unset). --guarded tests the engine's replacements for torch's convolutions.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from ctypes.util import find_library
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F

from mcd_cli.machine import processor
from mcd_cli.ops.convolution import UNSTRIDED
from mcd_cli.ops.overrides import Overrides

BATCH_OF_SHAPES = 100
MOST_MACS = 1e8  # in one forward pass; larger shapes are left out
MOST_NUMBERS = 4e6  # in one input or output; larger shapes are left out
MOST_CHECKED_MACS = 1e7  # in one float64 forward pass; the values of larger shapes are not compared
SECONDS_FOR_ONE = 20
CHANNELS = (1, 2, 3, 4, 6, 8, 12, 15, 16, 17, 24, 32, 64)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}  # relative to the largest value of the float64 result


class Shape(NamedTuple):
    """One convolution. Its padding is half the kernel; a depthwise one has one group per channel."""

    kernel: int
    stride: int
    depthwise: bool
    channels_in: int
    channels_out: int
    pixels: int
    batch: int
    dtype: str
    layout: str

    @property
    def groups(self) -> int:
        return self.channels_in if self.depthwise else 1

    @property
    def pixels_out(self) -> int:
        return (self.pixels + 2 * (self.kernel // 2) - self.kernel) // self.stride + 1

    @property
    def macs(self) -> int:
        macs_per_pixel = self.channels_out * self.channels_in // self.groups * self.kernel**2
        return self.batch * self.pixels_out**2 * macs_per_pixel

    @property
    def numbers(self) -> int:
        return self.batch * max(self.channels_in * self.pixels**2, self.channels_out * self.pixels_out**2)


def grid() -> list[Shape]:
    """All shapes to try, apart from those that are too large."""
    shapes = itertools.product(
        (1, 2, 3, 5, 7),
        (1, 2, 3, 4),
        (False, True),
        CHANNELS,
        CHANNELS,
        (7, 8, 14, 16, 28, 32, 56, 64, 96, 128),
        (1, 4, 128),
        ("float32", "bfloat16"),
        ("channels_last", "row_major"),
    )
    candidates = (Shape(*values) for values in shapes)
    small = (s for s in candidates if s.macs <= MOST_MACS and s.numbers <= MOST_NUMBERS)
    return [s for s in small if not s.depthwise or s.channels_in == s.channels_out > 1]


def try_shape(shape: Shape, guarded: bool) -> str:
    """What is wrong with the values, or "" if nothing is; a crash ends the process."""
    dtype = getattr(torch, shape.dtype)
    layout = torch.channels_last if shape.layout == "channels_last" else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.randn(shape.batch, shape.channels_in, shape.pixels, shape.pixels).to(dtype)
    weight = torch.randn(shape.channels_out, shape.channels_in // shape.groups, shape.kernel, shape.kernel).to(dtype)

    def results(dtype: torch.dtype, mode: AbstractContextManager[object]) -> list[torch.Tensor]:
        inputs = [t.to(dtype).contiguous(memory_format=layout).requires_grad_() for t in (x, weight)]
        with mode:
            y = F.conv2d(inputs[0], inputs[1], None, shape.stride, shape.kernel // 2, 1, shape.groups)
        generator = torch.Generator().manual_seed(1)
        direction = torch.randn(y.shape, generator=generator).to(x.dtype).to(dtype)
        return [y.detach(), *torch.autograd.grad(y, inputs, direction.contiguous(memory_format=layout))]

    actual = results(dtype, Overrides(UNSTRIDED) if guarded else nullcontext())
    if shape.macs > MOST_CHECKED_MACS:
        return ""
    for kind, value, exact in zip(
        ("output", "input gradient", "weight gradient"), actual, results(torch.float64, nullcontext()), strict=True
    ):
        error = (value.double() - exact).abs().max() / exact.abs().max()
        if not error <= TOLERANCE[dtype]:
            return f"{kind} is off by {error:.1e} of its largest value"
    return ""


def in_a_process(shapes: Sequence[Shape], guarded: bool) -> tuple[list[str], str]:
    """Try shapes in a forked process: the findings until it ended, and the signal that killed it, if any."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # hide glibc's messages about a corrupted heap
        with os.fdopen(write, "w") as pipe:
            for shape in shapes:
                signal.alarm(SECONDS_FOR_ONE)
                print(try_shape(shape, guarded), file=pipe, flush=True)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        findings = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return findings, f"dies of {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else ""


def sweep(shapes: list[Shape], seconds: float, guarded: bool) -> Iterator[tuple[Shape, str]]:
    """Yields shapes with their findings, in order, until the time is over.

    The shape at which a process died is tried again in a separate process. If it succeeds there, an earlier shape has
    corrupted the heap, and all shapes of the batch are tried separately.
    """
    start, place = time.monotonic(), 0
    while place < len(shapes) and time.monotonic() - start < seconds:
        batch = shapes[place : place + BATCH_OF_SHAPES]
        findings, death = in_a_process(batch, guarded)
        if death:
            batch = batch[: len(findings) + 1]
            last_finding, death = in_a_process(batch[-1:], guarded)
            if death:
                findings.append(death)
            else:
                separate = (in_a_process([shape], guarded) for shape in batch[:-1])
                findings = [death or finding[0] for finding, death in separate] + last_finding
        yield from zip(batch, findings, strict=True)
        place += len(batch)


def worker(args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    shapes = grid()
    random.Random(args.seed).shuffle(shapes)
    if args.only:
        shapes = [s for s in shapes if eval(args.only, {}, s._asdict())]
    num_tried, wrong = 0, []
    for shape, finding in sweep(shapes, args.seconds, args.guarded):
        num_tried += 1
        if finding:
            wrong.append(shape._asdict() | {"finding": finding})
            print(finding, shape, file=sys.stderr)
    print(json.dumps({"in_grid": len(shapes), "tried": num_tried, "wrong": wrong}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", action="append", help="AVX2, AVX512_CORE, ...; native: no limit")
    parser.add_argument("--guarded", action="store_true")
    parser.add_argument("--only", help="a Python condition on the shape, such as 'kernel == 1 and stride > 1'")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    malloc_debug = find_library("c_malloc_debug") or "libc_malloc_debug.so.0"
    document: dict[str, object] = {
        "hardware": {"name": processor(), "capability": torch.backends.cpu.get_cpu_capability()},
        "versions": {"python": platform.python_version(), "torch": version("torch"), "glibc": platform.libc_ver()[1]},
        "date": datetime.now(UTC).date().isoformat(),
        "seed": args.seed,
        "guarded": args.guarded,
    }
    runs: dict[str, object] = {}
    for isa in args.isa or ["native", "AVX2"]:
        environment = os.environ | {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", "LD_PRELOAD": malloc_debug}
        if isa != "native":
            environment["ONEDNN_MAX_CPU_ISA"] = isa
        out = subprocess.run(
            [sys.executable, *sys.argv, "--worker"], env=environment, stdout=subprocess.PIPE, check=True
        )
        runs[isa] = result = json.loads(out.stdout)
        kinds = Counter(w["finding"] if w["finding"].startswith("dies") else "wrong values" for w in result["wrong"])
        print(f"{isa}: {result['tried']} of {result['in_grid']} shapes, {dict(kinds)}", file=sys.stderr)
    text = json.dumps(document | {"runs": runs}, indent=1)
    if args.out is not None:
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

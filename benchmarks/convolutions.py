"""Tries convolutions on this processor: which crash, overwrite memory or compute wrong values?

    python benchmarks/convolutions.py [--seconds 900] [--isa native --isa AVX2] [--guarded] [--out FILE.json]

Each shape runs forward and backward in a forked process whose heap glibc checks (MALLOC_CHECK_=3; Linux only), and
its output and both gradients are compared with float64. Shapes share a process as long as nothing happens; where one
dies, each of its shapes runs again in a process of its own. The grid is shuffled by --seed and tried until --seconds
are over, once for each --isa (ONEDNN_MAX_CPU_ISA; `native` sets none). --guarded runs what the engine runs instead.
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
MOST_MACS = 1e8  # of one forward pass; larger shapes are left out
MOST_NUMBERS = 4e6  # of one input or output, too
MOST_CHECKED_MACS = 1e7  # of one forward pass in float64; the values of larger shapes are not compared
SECONDS_FOR_ONE = 20
CHANNELS = (1, 2, 3, 4, 6, 8, 12, 15, 16, 17, 24, 32, 64)
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-1}  # of the largest value of the float64 result


class Shape(NamedTuple):
    """One convolution: padding is half the kernel; depthwise has one group a channel."""

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
        each = self.channels_out * self.channels_in // self.groups * self.kernel**2
        return self.batch * self.pixels_out**2 * each

    @property
    def numbers(self) -> int:
        return self.batch * max(self.channels_in * self.pixels**2, self.channels_out * self.pixels_out**2)


def grid() -> list[Shape]:
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
    every = (Shape(*values) for values in shapes)
    small = (s for s in every if s.macs <= MOST_MACS and s.numbers <= MOST_NUMBERS)
    return [s for s in small if not s.depthwise or s.channels_in == s.channels_out > 1]


def tried(shape: Shape, guarded: bool) -> str:
    """What is wrong with the values, or nothing; a crash ends the process."""
    dtype = getattr(torch, shape.dtype)
    layout = torch.channels_last if shape.layout == "channels_last" else torch.contiguous_format
    torch.manual_seed(0)
    x = torch.randn(shape.batch, shape.channels_in, shape.pixels, shape.pixels).to(dtype)
    weight = torch.randn(shape.channels_out, shape.channels_in // shape.groups, shape.kernel, shape.kernel).to(dtype)

    def results(dtype: torch.dtype, mode: AbstractContextManager[object]) -> list[torch.Tensor]:
        own = [t.to(dtype).contiguous(memory_format=layout).requires_grad_() for t in (x, weight)]
        with mode:
            y = F.conv2d(own[0], own[1], None, shape.stride, shape.kernel // 2, 1, shape.groups)
        generator = torch.Generator().manual_seed(1)
        along = torch.randn(y.shape, generator=generator).to(x.dtype).to(dtype)
        return [y.detach(), *torch.autograd.grad(y, own, along.contiguous(memory_format=layout))]

    found = results(dtype, Overrides(UNSTRIDED) if guarded else nullcontext())
    if shape.macs > MOST_CHECKED_MACS:
        return ""
    for what, ours, exact in zip(
        ("output", "input gradient", "weight gradient"), found, results(torch.float64, nullcontext()), strict=True
    ):
        error = (ours.double() - exact).abs().max() / exact.abs().max()
        if not error <= TOLERANCE[dtype]:
            return f"{what} is off by {error:.1e} of its largest value"
    return ""


def in_a_process(shapes: Sequence[Shape], guarded: bool) -> tuple[list[str], str]:
    """The findings of the shapes in order, as far as the process came; what it died of, if it did."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # glibc's words on a broken heap
        with os.fdopen(write, "w") as pipe:
            for shape in shapes:
                signal.alarm(SECONDS_FOR_ONE)
                print(tried(shape, guarded), file=pipe, flush=True)
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        found = pipe.read().splitlines()
    _, status = os.waitpid(child, 0)
    return found, f"dies of {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else ""


def sweep(shapes: list[Shape], seconds: float, guarded: bool) -> Iterator[tuple[Shape, str]]:
    """Shapes in order, with what happened; until the time is over.

    The shape at which a process died is tried again alone; if that goes well, an earlier one broke the heap, and all
    are tried alone.
    """
    start, place = time.monotonic(), 0
    while place < len(shapes) and time.monotonic() - start < seconds:
        batch = shapes[place : place + BATCH_OF_SHAPES]
        found, death = in_a_process(batch, guarded)
        if death:
            batch = batch[: len(found) + 1]
            alone, death = in_a_process(batch[-1:], guarded)
            if death:
                found.append(death)
            else:
                singly = (in_a_process([shape], guarded) for shape in batch[:-1])
                found = [death or own[0] for own, death in singly] + alone
        yield from zip(batch, found, strict=True)
        place += len(batch)


def worker(asked: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    shapes = grid()
    random.Random(asked.seed).shuffle(shapes)
    if asked.only:
        shapes = [s for s in shapes if eval(asked.only, {}, s._asdict())]
    number, wrong = 0, []
    for shape, finding in sweep(shapes, asked.seconds, asked.guarded):
        number += 1
        if finding:
            wrong.append(shape._asdict() | {"finding": finding})
            print(finding, shape, file=sys.stderr)
    print(json.dumps({"in_grid": len(shapes), "tried": number, "wrong": wrong}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--isa", action="append", help="AVX2, AVX512_CORE, ...; native: as the machine is")
    parser.add_argument("--guarded", action="store_true")
    parser.add_argument("--only", help="a Python condition on the shape, such as 'kernel == 1 and stride > 1'")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        worker(asked)
        return
    checked = find_library("c_malloc_debug") or "libc_malloc_debug.so.0"
    document: dict[str, object] = {
        "hardware": {"name": processor(), "capability": torch.backends.cpu.get_cpu_capability()},
        "versions": {"python": platform.python_version(), "torch": version("torch"), "glibc": platform.libc_ver()[1]},
        "date": datetime.now(UTC).date().isoformat(),
        "seed": asked.seed,
        "guarded": asked.guarded,
    }
    runs: dict[str, object] = {}
    for isa in asked.isa or ["native", "AVX2"]:
        environment = os.environ | {"MALLOC_CHECK_": "3", "MALLOC_PERTURB_": "165", "LD_PRELOAD": checked}
        if isa != "native":
            environment["ONEDNN_MAX_CPU_ISA"] = isa
        out = subprocess.run(
            [sys.executable, *sys.argv, "--worker"], env=environment, stdout=subprocess.PIPE, check=True
        )
        runs[isa] = found = json.loads(out.stdout)
        kinds = Counter(w["finding"] if w["finding"].startswith("dies") else "wrong values" for w in found["wrong"])
        print(f"{isa}: {found['tried']} of {found['in_grid']} shapes, {dict(kinds)}", file=sys.stderr)
    text = json.dumps(document | {"runs": runs}, indent=1)
    if asked.out is not None:
        asked.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Captures repeated GPU work as CUDA graphs, verifies each graph against eager mode, and then replays it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple, cast

import torch
from torch import Tensor

WARM_UP = 2  # eager calls before the capture, which create momentum buffers and choose kernels
NUM_FIRST = WARM_UP + 2  # plus the call that captures and the call that verifies

Inputs = TypeVarTuple("Inputs")
Output = TypeVar("Output", bound=Tensor | None)


class GraphBackend(Protocol):
    """Runs and records work on a device."""

    def run(self, work: Callable[[], Output]) -> Output:
        """Run the work eagerly, under the same conditions as for recording."""
        ...

    def capture(self, work: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        """Record the work; returns a function that repeats it on the same tensors, and the output tensor."""
        ...


class CudaGraphBackend:
    """CUDA graphs of one stage, with one side stream, as autograd and the allocator require, and one memory pool.

    The graphs can share the pool because only the output of a replay is needed afterwards, and it is copied.
    """

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Output]) -> Output:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            output = work()
        current.wait_stream(self.stream)
        return output

    def capture(self, work: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        gc.collect()  # an earlier stage's graphs must not be destroyed during a capture
        graph = torch.cuda.CUDAGraph()
        # thread_local: a DataLoader's thread may pin memory during the capture
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            output = work()
        return graph.replay, output


class GraphCapture:
    """The graphs of one stage. Without a backend, all work runs eagerly.

    warn: called with one line if work that should be replayed cannot be.
    """

    def __init__(self, backend: GraphBackend | None, device: torch.device, warn: Callable[[str], None]) -> None:
        self.backend = backend
        self.device = device
        self.warn = warn
        self.recording = False
        self.num_asked = 0
        self.num_first = NUM_FIRST if backend else 0  # number of calls before work is replayed

    def wrap(
        self, name: str, work: Callable[[*Inputs], Output], written: Callable[[], Sequence[Tensor]]
    ) -> Callable[[*Inputs], Output]:
        """A function that replays `work` as a graph (see GraphedCallable), or `work` itself without a backend."""
        return work if self.backend is None else GraphedCallable(name, work, written, self, self.backend)

    def host_is_asked(self) -> None:
        """Called by work that reads a changing value from the host (a draw, the step's index).

        A graph would freeze that value, so such work is never captured.
        """
        self.num_asked += 1

    def asked_so_far(self) -> list[Tensor]:
        """The number of such reads, and the states of the random generators, without a device synchronisation.

        Dropout and stochastic depth change the generators' states.
        """
        states = [torch.tensor(self.num_asked), torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states


class GraphedCallable(Generic[*Inputs, Output]):
    """A function of tensors, batches and constants that runs eagerly in its first calls and is replayed afterwards.

    work: reads its inputs and captured variables, writes in place, and only to the tensors of `written` (no other
    side effect is ever read), and returns a tensor or None.

    Always run eagerly: inputs whose shape differs from the first call's; work that draws random numbers or reads
    from the host; and, with a warning, work that cannot be captured or whose replay on fresh inputs is not
    bit-identical (without deterministic mode: not equal up to rounding). In all cases a call leaves the same state
    as the eager work.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[*Inputs], Output],
        written: Callable[[], Sequence[Tensor]],
        graphs: GraphCapture,
        backend: GraphBackend,
    ) -> None:
        self.name = name
        self.work = work
        self.written = written
        self.graphs = graphs
        self.backend = backend
        self.num_calls = 0
        self.inputs: tuple[*Inputs] | None = None  # the graph's input tensors; the caller's inputs are copied there
        self.output: Output | None = None
        self.replay: Callable[[], None] | None = None
        self.given_up = False

    def __call__(self, *inputs: *Inputs) -> Output:
        if self.given_up:
            return self.work(*inputs)
        if self.inputs is None:
            self.inputs = _copied(inputs)
        elif not _can_load(self.inputs, inputs):
            return self.work(*inputs)
        self.num_calls += 1
        if self.num_calls <= WARM_UP:
            return self.backend.run(lambda: self.work(*inputs))
        if self.replay is None:
            return self._capture(inputs)
        if self.num_calls == NUM_FIRST:
            return self._verify(inputs)
        return self._replayed(inputs)

    def _replayed(self, inputs: tuple[*Inputs]) -> Output:
        assert self.replay is not None
        _load(self.inputs, inputs)
        self.replay()
        return cast(Output, _copied(self.output))  # the next replay overwrites it

    def _capture(self, inputs: tuple[*Inputs]) -> Output:
        """Run the work eagerly, save its results, and run it again to record it."""
        asked_before = self.graphs.asked_so_far()
        output = self.backend.run(lambda: self.work(*inputs))
        if not all(map(torch.equal, asked_before, self.graphs.asked_so_far())):
            self._give_up()
            return output
        written = self.written()
        after = _copied(written)
        held = self.inputs
        assert held is not None
        _load(held, inputs)
        try:
            self.graphs.recording = True
            self.replay, self.output = self.backend.capture(lambda: self.work(*held))
        except Exception as error:  # whatever the driver reports, the work can still run eagerly
            self._give_up(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
        finally:
            self.graphs.recording = False
        _load(written, after)
        return output

    def _verify(self, inputs: tuple[*Inputs]) -> Output:
        """Compare a replay with the eager work, from the same state and on inputs not used for the capture."""
        written = self.written()
        before = _copied(written)
        output = self.backend.run(lambda: self.work(*inputs))
        after = _copied(written)
        _load(written, before)
        replayed = self._replayed(inputs)
        equal = [_same(*tensors) for tensors in zip(after, written, before, strict=True)]
        if output is not None:
            equal.append(replayed is not None and _same(output, replayed, torch.zeros_like(output)))
        if not all(equal):
            self._give_up(f"{equal.count(False)} of {len(equal)} tensors differ from the eager step's")
            _load(written, after)
        return output

    def _give_up(self, reason: str | None = None) -> None:
        self.given_up = True
        self.inputs = self.output = self.replay = None
        if reason is not None:
            self.graphs.warn(
                f"{self.name} cannot be replayed as a CUDA graph ({reason}); it runs eagerly, which is slower"
            )


def _copied(value: Any) -> Any:
    """A copy of a tensor, or of tuples and lists of tensors; constants are returned unchanged."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        copies = map(_copied, value)
        return type(value)(*copies) if hasattr(value, "_fields") else type(value)(copies)
    return value


def _can_load(a: Any, b: Any) -> bool:
    """Whether b can be loaded into a: tensors of the same shape, dtype and layout; equal constants."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_can_load, a, b))
    return bool(type(a) is type(b) and a == b)


def _load(target: Any, value: Any) -> None:
    if isinstance(target, Tensor):
        with torch.no_grad():
            target.copy_(value)
    elif isinstance(target, tuple | list):
        for inner, new in zip(target, value, strict=True):
            _load(inner, new)


def _same(a: Tensor, b: Tensor, before: Tensor) -> bool:
    """Whether a equals b: bit by bit in deterministic mode, otherwise up to 1/50 of the step's change."""
    if torch.are_deterministic_algorithms_enabled() or not a.is_floating_point():
        return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
    distance, moved, size = ((x.double().norm()) for x in (a - b, a - before, a))
    return bool(distance <= 0.02 * moved + 1e-6 * size)

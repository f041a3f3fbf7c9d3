"""Work that a GPU does without the host: captured once as a CUDA graph, proved, then replayed."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple, cast

import torch
from torch import Tensor

WARM_UP = 2  # calls as written before the capture: momenta are made, kernels chosen
NUM_FIRST = WARM_UP + 2  # and one that captures, and one that proves

Inputs = TypeVarTuple("Inputs")
Output = TypeVar("Output", bound=Tensor | None)


class GraphBackend(Protocol):
    """How work is run and recorded on a device."""

    def run(self, work: Callable[[], Output]) -> Output:
        """As written, where and how it would be recorded."""
        ...

    def capture(self, work: Callable[[], Output]) -> tuple[Callable[[], None], Output]:
        """What repeats the work on the same tensors, and where its output will stand."""
        ...


class CudaGraphBackend:
    """CUDA graphs of one stage: one side stream, as autograd and the allocator want it, and one pool of memory.

    The graphs may share the pool because nothing in it is needed after a replay but its output, which is copied.
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
        gc.collect()  # the graphs of an earlier stage must not be destroyed while this one is captured
        graph = torch.cuda.CUDAGraph()
        # thread_local: a DataLoader's thread may pin memory meanwhile
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            output = work()
        return graph.replay, output


class GraphCapture:
    """The graphs of one stage. Without a backend all work is run as written.

    warn: told in one line when work cannot be replayed though it should.
    """

    def __init__(self, backend: GraphBackend | None, device: torch.device, warn: Callable[[str], None]) -> None:
        self.backend = backend
        self.device = device
        self.warn = warn
        self.recording = False
        self.num_asked = 0
        self.num_first = NUM_FIRST if backend else 0  # calls of each work until it is replayed

    def wrap(
        self, name: str, work: Callable[[*Inputs], Output], written: Callable[[], Sequence[Tensor]]
    ) -> Callable[[*Inputs], Output]:
        """The same function, as a graph where there is a backend; name: in a warning."""
        return work if self.backend is None else GraphedCallable(name, work, written, self, self.backend)

    def host_is_asked(self) -> None:
        """By work, for what changes from call to call (a draw, the step's number): a graph would freeze the answer."""
        self.num_asked += 1

    def asked_so_far(self) -> list[Tensor]:
        """Of the host, and of the generators that dropout and stochastic depth draw from; no device is waited for."""
        states = [torch.tensor(self.num_asked), torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states


class GraphedCallable(Generic[*Inputs, Output]):
    """A function of tensors, batches and constants that is run as written at first and replayed from then on.

    work: reads its inputs and what it closes over, writes in place, to the tensors of `written` alone (what else it
    leaves behind is never read), and returns a tensor or nothing. Inputs of another shape than the first call's are
    run as written, always. So is work that draws random numbers or asks the host, and, with a warning, work that
    cannot be captured or whose replay on fresh inputs is not the same to the last bit (in deterministic mode; else to
    rounding). Whatever happens, each call leaves the state that the work as written would leave.
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
        self.inputs: tuple[*Inputs] | None = None  # the graph's own; the caller's are copied there
        self.output: Output | None = None
        self.replay: Callable[[], None] | None = None
        self.given_up = False

    def __call__(self, *inputs: *Inputs) -> Output:
        if self.given_up:
            return self.work(*inputs)
        if self.inputs is None:
            self.inputs = _held(inputs)
        elif not _alike(self.inputs, inputs):
            return self.work(*inputs)
        self.num_calls += 1
        if self.num_calls <= WARM_UP:
            return self.backend.run(lambda: self.work(*inputs))
        if self.replay is None:
            return self._capture(inputs)
        if self.num_calls == NUM_FIRST:
            return self._prove(inputs)
        return self._replayed(inputs)

    def _replayed(self, inputs: tuple[*Inputs]) -> Output:
        assert self.replay is not None
        _load(self.inputs, inputs)
        self.replay()
        return cast(Output, _held(self.output))  # the next replay overwrites it

    def _capture(self, inputs: tuple[*Inputs]) -> Output:
        """The work as written; then, its results put aside, once more under the backend."""
        asked = self.graphs.asked_so_far()
        output = self.backend.run(lambda: self.work(*inputs))
        if not all(map(torch.equal, asked, self.graphs.asked_so_far())):
            self._give_up()
            return output
        written = self.written()
        after = _held(written)
        held = self.inputs
        assert held is not None
        _load(held, inputs)
        try:
            self.graphs.recording = True
            self.replay, self.output = self.backend.capture(lambda: self.work(*held))
        except Exception as error:  # whatever the driver says: the work as written is still there
            self._give_up(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}")
        finally:
            self.graphs.recording = False
        _load(written, after)
        return output

    def _prove(self, inputs: tuple[*Inputs]) -> Output:
        """Replay and the work as written from the same state, on inputs that the capture has not seen."""
        written = self.written()
        before = _held(written)
        output = self.backend.run(lambda: self.work(*inputs))
        after = _held(written)
        _load(written, before)
        replayed = self._replayed(inputs)
        same = [_same(*each) for each in zip(after, written, before, strict=True)]
        if output is not None:
            same.append(replayed is not None and _same(output, replayed, torch.zeros_like(output)))
        if not all(same):
            self._give_up(f"{same.count(False)} of {len(same)} tensors differ from those of the step as written")
            _load(written, after)
        return output

    def _give_up(self, reason: str | None = None) -> None:
        self.given_up = True
        self.inputs = self.output = self.replay = None
        if reason is not None:
            self.graphs.warn(f"{self.name} cannot be replayed as a CUDA graph ({reason}); it goes on without, slower")


def _held(value: Any) -> Any:
    """A copy of its own: of tensors, and of tuples and lists of them; constants are themselves."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        held = map(_held, value)
        return type(value)(*held) if hasattr(value, "_fields") else type(value)(held)
    return value


def _alike(a: Any, b: Any) -> bool:
    """Whether b can be loaded into a: shapes, types and layouts of tensors, values of constants."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(type(a) is type(b) and a == b)


def _load(target: Any, value: Any) -> None:
    if isinstance(target, Tensor):
        with torch.no_grad():
            target.copy_(value)
    elif isinstance(target, tuple | list):
        for inner, new in zip(target, value, strict=True):
            _load(inner, new)


def _same(a: Tensor, b: Tensor, before: Tensor) -> bool:
    """To the last bit where determinism is asked for, else to a fiftieth of what the step has changed."""
    if torch.are_deterministic_algorithms_enabled() or not a.is_floating_point():
        return bool(torch.isclose(a, b, rtol=0, atol=0, equal_nan=True).all())
    distance, moved, size = ((x.double().norm()) for x in (a - b, a - before, a))
    return bool(distance <= 0.02 * moved + 1e-6 * size)

"""Graphed training equals eager training: on a CPU with a tape in place of CUDA graphs, on a GPU with the graphs.

A tape holds what a CUDA graph holds: operators on fixed tensors. What the host would still have to do in a step (a
number that changes, an input left where it was, a value copied to the device) is missing from it, too.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcd_cli.data import load_dataset
from mcd_cli.data.augment import PRESETS
from mcd_cli.data.loader import Loader
from mcd_cli.engine.checkpoint import read_state
from mcd_cli.engine.cuda_graphs import NUM_FIRST, GraphCapture, GraphedCallable
from mcd_cli.engine.evaluation import each_logits
from mcd_cli.engine.events import Event, StepEnded, WarningMessage
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.errors import Interrupted, RunFailed
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.losses import LOSSES
from mcd_cli.methods import METHODS, MethodSpec
from mcd_cli.methods.base import BatchContext
from mcd_cli.methods.kd import KD
from mcd_cli.models import ARCHITECTURES
from mcd_cli.registry import Row
from support.operators import HOST_SYNC
from support.runs import Register, finished, go_on, make_run, signal_at, tiny_recipe, train

FROM_HOST = "aten.lift_fresh"  # torch.tensor(…), new_tensor(…): on a GPU a copy from the host


class Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        self.operators.append((func, args, kwargs or {}, output))
        return output


class Tape:
    """A backend for a CPU: replays operators on the tensors they were recorded with, without any Python of ours."""

    def __init__(self) -> None:
        self.recorded: list[Counter[str]] = []
        self.num_replays = 0

    def run(self, work: Callable[[], Any]) -> Any:
        return work()

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        with Recording() as recording:
            output = work()
        self.recorded.append(Counter(str(func).rpartition(".")[0] for func, *_ in recording.operators))

        @torch.no_grad()
        def replay() -> None:
            self.num_replays += 1
            for func, args, kwargs, held in recording.operators:
                for old, new in zip(tree_leaves(held), tree_leaves(func(*args, **kwargs)), strict=True):
                    if not isinstance(old, Tensor) or old._is_zerotensor():
                        continue
                    if old.untyped_storage()._cdata != new.untyped_storage()._cdata:
                        old.copy_(new)

        return replay, output


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    """All runs of this test are graphed."""
    made = Tape()
    monkeypatch.setattr(Run, "graph_backend", lambda self: made)
    return made


LONG = {"batch_size": 100, "epochs": 2, "warm_start": {"epochs": 0}, "coordinator": {"every": 2}}  # 10 steps an epoch


LIFTED = {
    "method": "mc-distil",
    "augment": {"preset": "digits", "mixup": 0.5, "cutmix": 1.0},
    "student": {"resnet10-xxs": {"lr": 0.1, "weight_decay": 0.0, "total": 2.0}},
    "ema": {"decay": 0.5},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As written, never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_recipe(**LONG), out)
    return out


class RandomViews:
    """The teacher's stored logits of two views, without a teacher."""

    num_views = 2

    def __call__(self, epoch: int) -> Tensor:
        return torch.randn(1797, 10, generator=torch.Generator().manual_seed(epoch % 2)).half()


def steps_of(out: Path, num_steps: int, backend: Tape | None, **changes: Any) -> tuple[dict[str, Tensor], list[str]]:
    """The state after so many steps of a stage and an evaluation, and what was warned of."""
    recipe, told = tiny_recipe(**(LONG | changes)), list[str]()
    with RunFolder.create(str(out), recipe) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "graph_backend", lambda self: backend)
        run = make_run(recipe, folder)
        torch.manual_seed(0)  # of the stand-ins for finished students
        trainer = run.trainer(run.plans[-1], rehearsal=True)
    trainer.graphs.warn = told.append
    if trainer.teacher_logits is not None:
        trainer.teacher_logits = RandomViews()  # type: ignore[assignment]
    trainer.prepare()
    while trainer.step_index < num_steps:
        for _ in trainer.steps():
            if trainer.step_index == num_steps:
                break
        else:
            trainer.end_epoch()
    return {name: value.nan_to_num() for name, value in trainer.state_dict().tensors.items()}, told


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "ce"},
        {"method": "kd", "optimizer": {"nesterov": True}},
        {"method": "constant", "teacher": {"views": 2}},
        {"method": "rmc"},
        {"method": "mc-distil", "coordinator": {"every": 2, "normalise": "mean", "total": 3.0}},
        {"method": "mc-distil", "coordinator": {"every": 2, "arch": "losses", "normalise": "image"}},
        {"method": "mc-distil", "coordinator": {"every": 1, "optimizer": "adam", "shared": False}},
        {"method": "mc-distil", "distill": {"losses": list(LOSSES)}},
        {"method": "bank", "distill": {"losses": ["ce", {"loss": "kd", "ramp": 1.0}]}},  # it grows while it is replayed
        {"method": "rule"},
        {"method": "kd", "ema": {"decay": 0.99}},
        LIFTED,
    ],
    ids=str,
)
def test_replayed_steps_are_the_steps_as_written(tmp_path: Path, changes: dict[str, Any]) -> None:
    written, _ = steps_of(tmp_path / "written", 12, None, **changes)
    tape = Tape()
    replayed, told = steps_of(tmp_path / "replayed", 12, tape, **changes)
    assert told == []
    assert tape.num_replays >= 4
    for operators in tape.recorded:
        assert operators[HOST_SYNC] == operators[FROM_HOST] == 0
    assert written.keys() == replayed.keys()
    assert all(torch.equal(value, replayed[name]) for name, value in written.items())


def test_a_whole_graphed_run_leaves_the_same_files(tmp_path: Path, tape: Tape, whole: Path) -> None:
    train(tiny_recipe(**LONG), tmp_path / "run")
    assert finished(tmp_path / "run") == finished(whole)
    assert tape.num_replays > 10


def test_evaluation_is_replayed_too(tmp_path: Path) -> None:
    """With the weights as they are then; the short last batch runs as written."""
    tape, recipe = Tape(), tiny_recipe(method="ce", warm_start={"epochs": 0})
    with RunFolder.create(str(tmp_path / "run"), recipe) as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "graph_backend", lambda self: tape)
        run = make_run(recipe, folder)
        trainer = run.trainer(run.plans[-1], rehearsal=True)
    val, seen = trainer.loader.dataset.val, set()
    for epoch in range(NUM_FIRST + 3):
        trainer.step(next(iter(trainer.loader.epoch(epoch))))
        expected = each_logits(trainer.students, trainer.loader, val, lambda z: z)
        before = tape.num_replays
        assert torch.equal(each_logits(trainer.students, trainer.loader, val, lambda z: z, trainer.evaluated), expected)
        assert tape.num_replays - before == (epoch + 1 >= NUM_FIRST)
        seen.add(expected.sum().item())
    assert len(seen) == NUM_FIRST + 3


def test_the_tape_holds_what_a_tape_has_to_hold() -> None:
    """It would not notice a value copied from the host but by its operator."""
    with Recording() as recording:
        torch.zeros(2).new_tensor([1.0, 2.0]) + torch.tensor(3.0)
    assert sum(str(func).startswith(FROM_HOST) for func, *_ in recording.operators) == 2


@pytest.mark.parametrize("step", [4, 13])
def test_resuming_is_exact_while_graphs_come_and_go(tmp_path: Path, tape: Tape, whole: Path, step: int) -> None:
    """The state that a graph writes is the state that is saved; a new process warms up again."""
    recipe = tiny_recipe(**LONG)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", step))
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(whole)


@pytest.mark.parametrize("method", ["ce", "kd", "mc-distil"])
@pytest.mark.parametrize(("step", "every"), [(1, None), (8, "1steps"), (15, None)])
def test_one_students_nan_reaches_nobody_and_no_file(
    tmp_path: Path, tape: Tape, method: str, every: str | None, step: int
) -> None:
    """The host asks late; from the bad step on, nothing has moved."""
    recipe = tiny_recipe(**(LONG | {"method": method, "checkpoint": {} if every is None else {"every": every}}))
    run: Run | None = None
    at_poison: dict[str, Tensor] = {}

    def poison(event: Event) -> None:
        if event == StepEnded("distill", step):
            assert run is not None
            with torch.no_grad():
                next(run.live.students.networks["resnet10-xxxs"].parameters()).fill_(float("nan"))
            at_poison.update({name: p.detach().clone() for name, p in run.live.students.named_parameters()})
            for cnet in run.live.coordination.networks:
                at_poison.update({name: p.detach().clone() for name, p in cnet.named_parameters()})

    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        run = make_run(recipe, folder, poison)
        with pytest.raises(RunFailed, match=f"logits of resnet10-xxxs are not finite at step {step} of stage distill"):
            run.train()
    live = dict(run.live.students.named_parameters())
    for cnet in run.live.coordination.networks:
        live |= dict(cnet.named_parameters())
    for name, p in live.items():
        assert torch.equal(p, at_poison[name]) or "xxxs" in name
    for path in (tmp_path / "run" / "checkpoint").glob("*.safetensors"):
        for name, value in read_state(path).tensors.items():
            fine = not value.is_floating_point() or torch.isfinite(value).all()
            # what was poisoned here, between two steps, may be saved before a step has computed with it
            assert fine or (every and name == "students:networks.resnet10-xxxs.conv1.weight"), name


class ByNumber(KD):
    """Its weights change with the step's number, which a graph would freeze."""

    def weights(self, batch: BatchContext) -> Tensor:
        return batch.logits.new_full((1,), 0.5 + batch.step_index() / 100)


class WithDropout(nn.Sequential):
    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Dropout(0.5), nn.Linear(16, num_classes))


@pytest.mark.parametrize(
    "changes",
    [
        {"method": "by-number"},
        {"method": "dgkd", "distill": {"drop": 0.5}},
        {"method": "mc-distil", "coordinator": {"control": "shuffle", "every": 2}},
        {"method": "kd", "students": ["with-dropout"]},
    ],
    ids=str,
)
def test_what_needs_the_host_stays_as_written(tmp_path: Path, changes: dict[str, Any], register: Register) -> None:
    """It is no fault, so nobody is warned."""
    register(METHODS, "by-number", MethodSpec(f"{__name__}:ByNumber", "weights by step", ("tau", "lambda", "total")))
    register(ARCHITECTURES, "with-dropout", Row(f"{__name__}:WithDropout"))
    written, _ = steps_of(tmp_path / "written", 10, None, **changes)
    tape = Tape()
    graphed, told = steps_of(tmp_path / "graphed", 10, tape, **changes)
    assert told == []
    assert tape.num_replays == 0
    assert all(torch.equal(value, graphed[name]) for name, value in written.items())


def graphed(work: Callable[..., Tensor | None], state: Tensor, told: list[str]) -> Callable[..., Any]:
    return GraphCapture(Tape(), torch.device("cpu"), told.append).wrap("this work", work, lambda: [state])


def test_a_replay_that_is_not_the_work_is_told_once_and_left() -> None:
    """A number that the host changes without a word: no capture can know, the proof sees it; no result is wrong."""
    state, number, told = torch.zeros(3), 0, list[str]()

    def work(x: Tensor) -> Tensor:
        state.add_(x * number)
        return state * 2

    call, expected = graphed(work, state, told), torch.zeros(3)
    for number in range(NUM_FIRST + 3):
        x = torch.arange(3.0) + number
        expected += x * number
        assert torch.equal(call(x), expected * 2)
        assert torch.equal(state, expected)
    (line,) = told
    assert line.startswith("this work cannot be replayed as a CUDA graph (2 of 2 tensors differ")


def test_a_capture_that_fails_is_told_once_and_leaves_the_state() -> None:
    state, told = torch.zeros(3), list[str]()

    def work(x: Tensor) -> None:
        state.add_(x)
        if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
            raise RuntimeError("operation not permitted when stream is capturing\nmore of it")

    call, expected = graphed(work, state, told), torch.zeros(3)
    for number in range(NUM_FIRST + 3):
        call(x := torch.arange(3.0) + number)
        expected += x
        assert torch.equal(state, expected)
    (line,) = told
    assert "(RuntimeError: operation not permitted when stream is capturing)" in line


def test_an_output_is_the_callers_own_and_other_shapes_run_as_written() -> None:
    state = torch.zeros(())

    def work(x: Tensor, scale: int) -> Tensor:
        state.add_(1)
        return x * scale

    told: list[str] = []
    call = graphed(work, state, told)
    assert isinstance(call, GraphedCallable)
    outputs = [call(torch.full((2,), float(i)), 3) for i in range(8)]
    assert [output.tolist() for output in outputs] == [[3.0 * i] * 2 for i in range(8)]
    assert call(torch.ones(5), 3).tolist() == [3.0] * 5
    assert call(torch.ones(2), 4).tolist() == [4.0, 4.0]
    assert (state.item(), told) == (10, [])


@pytest.mark.parametrize("preset", ["cifar", "strong", "tiny"])
@pytest.mark.parametrize("memory", [None, 1000], ids=["held", "streamed"])
def test_batches_augmented_ahead_are_the_same_images(preset: str, memory: int | None) -> None:
    dataset = load_dataset("digits", report=lambda line: None)

    def epoch(ahead: int | None, start: int = 0) -> list[Any]:
        loader = Loader(
            dataset,
            batch_size=100,
            seed=0,
            augmentation=PRESETS[preset],
            augment_seed=0,
            device=torch.device("cpu"),
            memory=memory,
            ahead=ahead,
        )
        return list(loader.epoch(1, start))

    one = epoch(None)
    assert len(one) == 10
    for ahead, start in ((3, 0), (4, 7), (64, 0)):
        batches = epoch(ahead, start)
        assert len(batches) == 10 - start
        for a, b in zip(batches, one[start:], strict=True):
            assert torch.equal(a.ids, b.ids)
            assert torch.equal(a.labels, b.labels)
            assert torch.equal(a.images, b.images)
            assert a.images.is_contiguous(memory_format=torch.channels_last)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here: CUDA graphs are not tried")


@needs_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("changes", [{"method": "ce"}, {"method": "kd"}, {"method": "mc-distil"}, LIFTED], ids=str)
@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_on_a_gpu(tmp_path: Path, changes: dict[str, Any], precision: str) -> None:  # pragma: no cover
    """The same bytes with and without graphs, no warning, and no wait for the device between two epochs' ends."""
    recipe = tiny_recipe(**(LONG | changes | {"precision": precision, "epochs": 4}))

    def trained(name: str, *, eager: bool) -> list[str]:
        told: list[str] = []

        def listen(event: Event) -> None:
            if isinstance(event, WarningMessage) and "CUDA graph" in event.text:
                told.append(event.text)
            if isinstance(event, StepEnded) and event.stage == "distill" and not eager:
                # epochs 1 and 2 hold the warm-up, the captures and the proofs; each epoch's end may wait
                torch.cuda.set_sync_debug_mode("error" if 20 < event.step < 30 else "default")

        with RunFolder.create(str(tmp_path / name), recipe) as folder:
            Run(recipe, folder, RunOptions(device="cuda", eager=eager), listen).train()
        return told

    trained("eager", eager=True)
    assert not trained("graphed", eager=False)
    assert finished(tmp_path / "graphed") == finished(tmp_path / "eager")


@needs_gpu
def test_resuming_on_a_gpu(tmp_path: Path) -> None:  # pragma: no cover
    recipe = tiny_recipe(**(LONG | {"epochs": 3}))

    def go(out: Path, listen: Callable[[Event], None] = lambda event: None) -> None:
        opened = RunFolder(out) if out.exists() else RunFolder.create(str(out), recipe)
        with opened as folder:
            Run(recipe, folder, RunOptions(device="cuda"), listen).train()

    go(tmp_path / "whole")
    with pytest.raises(Interrupted):
        go(tmp_path / "cut", signal_at("distill", 17))
    go(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")
    assert json.loads((tmp_path / "cut" / "ladder.json").read_text())["device"]["type"] == "cuda"

"""A run that is killed anywhere and resumed ends with the same bytes; other faults give one line."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mcd_cli import files
from mcd_cli.data import pixels
from mcd_cli.engine import evaluation, trainer
from mcd_cli.engine.checkpointer import Checkpointer
from mcd_cli.engine.events import Event, InfoMessage, StepEnded, WarningMessage
from mcd_cli.engine.run import Run, RunOptions
from mcd_cli.errors import McdError, RunFailed, UserError
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.manifest import Ladder
from support.runs import finished, go_on, signal_at, tiny_recipe, train

Where = tuple[Any, str]


def kill_at_call(where: Where, number: int, only: Callable[..., bool] = lambda *args: True) -> None:
    """From now on, the call of that number kills this process before anything of it is done."""
    owner, name = where
    plain, calls = getattr(owner, name), 0

    def deadly(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += bool(only(*args))
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(*args, **kwargs)

    setattr(owner, name, deadly)


def killed(out: Path, every: str | None, *failpoint: Any) -> None:
    """Train into the folder, in a process that dies at the failpoint."""
    child = os.fork()
    if child == 0:
        try:
            kill_at_call(*failpoint)
            train(tiny_recipe(checkpoint={} if every is None else {"every": every}), out)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
    assert not (out / "ladder.json").exists()


def is_state(source: Any, target: Any) -> bool:
    return Path(target).name.startswith("state-")


def is_between_stages(checkpointer: Checkpointer, trainer: Any) -> bool:
    return trainer is None


FAILPOINTS = {
    "in the first step": ((trainer, "instance_losses"), 1),
    "in a step": ((trainer, "instance_losses"), 7),
    "in a meta step": ((trainer.meta_gradient, "directional_losses"), 3),
    "between a state's temporary file and its name": ((files.os, "replace"), 3, is_state),
    "between a stage's result and its state": ((Checkpointer, "save"), 1, is_between_stages),
    "in evaluation": ((trainer, "predictions"), 2),
    "before the manifest": ((Ladder, "save"), 1),
}


@pytest.mark.parametrize("every", [None, "1steps"])
@pytest.mark.parametrize("failpoint", FAILPOINTS.values(), ids=FAILPOINTS)
def test_killed_and_resumed(uninterrupted: Path, tmp_path: Path, failpoint: Any, every: str | None) -> None:
    killed(tmp_path / "run", every, *failpoint)
    go_on(tmp_path / "run")
    assert finished(tmp_path / "run") == finished(uninterrupted)
    assert not list((tmp_path / "run").rglob(".*.tmp"))


def test_killed_twice(uninterrupted: Path, tmp_path: Path) -> None:
    """The second time while it goes on from what the first left."""
    out = tmp_path / "run"
    killed(out, None, (trainer, "predictions"), 3)
    with pytest.raises(McdError):
        go_on(out, signal_at("distill", 7))
    go_on(out)
    assert finished(out) == finished(uninterrupted)


def test_teacher_stage_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: Path) -> None:
    """Killed while it trains its own teacher: nothing in the cache yet."""
    monkeypatch.setenv("MCD_CACHE", str(tmp_path / "cache"))
    killed(tmp_path / "run", "1steps", (trainer, "instance_losses"), 6)
    assert not (tmp_path / "cache" / "teachers").exists() or not list((tmp_path / "cache" / "teachers").iterdir())
    go_on(tmp_path / "run")
    assert finished(tmp_path / "run") == finished(uninterrupted)


def test_a_folder_with_a_recipe_alone_starts_from_the_beginning(uninterrupted: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes((uninterrupted / "recipe.toml").read_bytes())
    go_on(tmp_path)
    assert finished(tmp_path) == finished(uninterrupted)


def test_metrics_of_a_stop_before_any_state_are_forgotten(tmp_path: Path, uninterrupted: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes((uninterrupted / "recipe.toml").read_bytes())
    (tmp_path / "metrics.jsonl").write_text('{"stage": "warm-start", "epoch": 1}\n')
    go_on(tmp_path)
    assert finished(tmp_path) == finished(uninterrupted)


def test_a_clock_that_jumps_changes_nothing(
    uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intervals are monotonic; the wall clock only dates the manifest."""
    hours = iter(range(10**6, 0, -1))
    monkeypatch.setattr(time, "time", lambda: 3600.0 * next(hours))
    out = tmp_path / "run"
    with pytest.raises(McdError):
        train(tiny_recipe(checkpoint={"every": "1min"}), out, signal_at("distill", 3))
    go_on(out)
    assert finished(out) == finished(uninterrupted)


def test_disk_full_while_saving(uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system says ENOSPC in the middle of the third state: one line with the bytes; what stood stays."""
    out, states = tmp_path / "run", 0
    plain = os.fsync

    def full(descriptor: int) -> None:
        nonlocal states
        states += "state-" in os.readlink(f"/proc/self/fd/{descriptor}")
        if states == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        plain(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed, match=r"the disk is full: .*state-.* needs [\d,]+ bytes"):
            train(tiny_recipe(checkpoint={"every": "1steps"}), out)
    assert len(list((out / "checkpoint").glob("state-*"))) == 2
    assert not list((out / "checkpoint").glob(".*"))
    go_on(out)
    assert finished(out) == finished(uninterrupted)


def test_a_file_may_not_grow(uninterrupted: Path, tmp_path: Path) -> None:
    """A real limit of the system, met in the write itself (a quota behaves so)."""
    out = tmp_path / "run"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, before[1]))
    try:
        with pytest.raises(RunFailed, match=r"state-.* \([\d,]+ bytes\): File too large"):
            train(tiny_recipe(), out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    go_on(out)
    assert finished(out) == finished(uninterrupted)


def test_a_folder_that_cannot_be_written() -> None:
    """/proc is read-only for everybody, root included."""
    with pytest.raises(McdError, match="/proc"):
        train(tiny_recipe(), Path("/proc/mcd-run"))


def test_resume_shows_what_changed(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(McdError):
        train(tiny_recipe(), out, signal_at("distill", 1))
    recipe = (out / "recipe.toml").read_text()
    (out / "recipe.toml").write_text(recipe.replace("epochs = 2", "epochs = 3", 1))
    with pytest.raises(UserError, match=r"recipe\.epochs has changed \(from 2 to 3\)"):
        go_on(out)


def test_a_teacher_of_other_hardware_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache names a teacher by the hardware it was trained on; a run that moves keeps the one it began with."""
    out, said = tmp_path / "run", []
    train(tiny_recipe(epochs=1), tmp_path / "first")  # now the cache has the teacher
    with pytest.raises(McdError):
        train(tiny_recipe(), out, signal_at("distill", 1))
    plain = trainer.Hardware.describe
    monkeypatch.setattr(trainer.Hardware, "describe", lambda self: plain(self) | {"threads": 64})
    go_on(out, lambda event: said.append(event.text) if isinstance(event, WarningMessage) else None)
    assert said[0].startswith("threads changed from 1 to 64")
    began = json.loads((tmp_path / "first" / "ladder.json").read_text())["teacher"]["sha256"]
    assert json.loads((out / "ladder.json").read_text())["teacher"]["sha256"] == began


def streamed(out: Path, emit: Callable[[Event], None] = lambda event: None) -> None:
    recipe = tiny_recipe()
    with RunFolder.create(str(out), recipe) as folder:
        Run(recipe, folder, RunOptions(device="cpu", threads=1, max_memory=1000), emit).train()


def test_streaming_is_the_same_training(uninterrupted: Path, tmp_path: Path) -> None:
    said: list[str] = []
    streamed(tmp_path / "run", lambda event: said.append(event.text) if isinstance(event, InfoMessage) else None)
    assert any("streamed from disk" in line for line in said)
    assert finished(tmp_path / "run") == finished(uninterrupted)


def test_a_dead_worker_is_told(tmp_path: Path, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed by the system while the run streams: exit 1 and one line; the run goes on from its last state."""
    plain, main = pixels._Rows.__getitem__, os.getpid()
    armed: list[bool] = []

    def deadly(self: Any, ids: Any) -> Any:
        if armed and os.getpid() != main:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, ids)

    monkeypatch.setattr(pixels._Rows, "__getitem__", deadly)
    with pytest.raises(RunFailed, match="process that reads images has died"):
        streamed(tmp_path / "run", lambda event: armed.append(True) if event == StepEnded("distill", 4) else None)
    armed.clear()
    go_on(tmp_path / "run")
    assert finished(tmp_path / "run") == finished(uninterrupted)


def test_evaluation_is_where_it_was_patched() -> None:
    """The failpoints stand on names that the engine really calls."""
    assert trainer.predictions is evaluation.predictions

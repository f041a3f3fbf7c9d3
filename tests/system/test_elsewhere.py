"""Other systems: with all that Windows, macOS and odd file systems lack hidden, the promises hold.

`elsewhere` is this system with no fcntl, no resource, no fork and no other call that POSIX alone has; a folder
cannot be opened, and what is printed to a pipe is cp1252, as on Windows.
"""

from __future__ import annotations

import ast
import ctypes
import errno
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcd_cli import files
from mcd_cli.data import memory
from mcd_cli.data.cache import lock
from mcd_cli.data.pixels import Streamed
from mcd_cli.engine import hardware, meters
from mcd_cli.engine.signals import stop_on_signal
from mcd_cli.errors import RunFailed, UserError
from mcd_cli.ladder.folder import LOCK, METRICS, RunFolder
from mcd_cli.ops import distributed
from support import INSTALLED
from support.pictures import classes
from support.runs import finished, make_run, tiny_recipe
from support.sources import MODULES

POSIX_ALONE = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "termios"}
HIDDEN = """
    import builtins, errno, multiprocessing, os
    plain_import = builtins.__import__
    def without(name, globals=None, *rest, **more):
        if name in {modules!r} and not (globals or {{}}).get("__name__", "").startswith("portalocker"):  # of fvcore's
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
        return plain_import(name, globals, *rest, **more)
    builtins.__import__ = without
    for name in ("fork", "forkpty", "posix_fallocate", "sched_getaffinity", "sysconf", "mkfifo"):
        delattr(os, name)
    multiprocessing.set_start_method("spawn")
    plain = os.open
    def no_folders(path, *args, **kwargs):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return plain(path, *args, **kwargs)
    os.open = no_folders
"""
OWNER = """
    import sys
    from mcd_cli.recipe.loading import load_recipe
    from mcd_cli.ladder.folder import RunFolder
    folder = RunFolder.create("run", load_recipe(None, {}))
    print("in", flush=True)
    sys.stdin.read()
    folder.close()
"""
WAITER = """
    import sys
    from pathlib import Path
    from mcd_cli.data.cache import lock
    with lock(Path("x.lock")) as alone:
        assert alone
        print("in", flush=True)
        sys.stdin.read()
"""


@pytest.fixture(scope="session")
def hiding(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of `elsewhere`: Python reads sitecustomize before anything else, in spawned processes too."""
    folder = tmp_path_factory.mktemp("site")
    code = textwrap.dedent(HIDDEN).format(modules=sorted(POSIX_ALONE - {"posix", "pwd", "grp"}))
    (folder / "sitecustomize.py").write_text(code)
    return {
        "PYTHONPATH": os.pathsep.join([str(folder), str(INSTALLED)]),
        "PYTHONIOENCODING": "cp1252",
        "MCD_CACHE": str(tmp_path_factory.mktemp("cache-elsewhere")),
    }


@pytest.fixture(params=["here", "elsewhere"])
def setting(request: pytest.FixtureRequest, hiding: dict[str, str]) -> dict[str, str]:
    return {"PYTHONPATH": str(INSTALLED)} if request.param == "here" else hiding


def start(code: str, setting: dict[str, str], place: Path) -> subprocess.Popen[str]:
    """That code at work in that folder; it ends when its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", textwrap.dedent(code)]
    return subprocess.Popen(command, env=os.environ | setting, cwd=place, stdin=pipe, stdout=pipe, text=True)


def is_in(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "in\n"


def end(process: subprocess.Popen[str]) -> None:
    """Killed, and no zombie, which would still have its number."""
    process.kill()
    process.wait()


def mcd(setting: dict[str, str], place: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mcd_cli", *args]
    encoding = setting.get("PYTHONIOENCODING", "utf-8")
    return subprocess.run(
        command, env=os.environ | setting, cwd=place, capture_output=True, encoding=encoding, timeout=120
    )


def distill(setting: dict[str, str], place: Path) -> subprocess.CompletedProcess[str]:
    """A tiny run on an image folder that is mapped from the cache and streamed, with a stored view."""
    settings = ["teacher.epochs=1", "teacher.views=1", "warm_start.epochs=1", "coordinator.arch=resnet10-xxxs"]
    options = ["--teacher", "resnet10-xxs", "--students", "resnet10-xxxs", "--epochs", "1", "--batch-size", "8"]
    options += [word for text in settings for word in ("--set", text)]
    return mcd(
        setting,
        place,
        "distill",
        "--dataset",
        "images",
        *options,
        "--max-memory",
        "1K",
        "--threads",
        "1",
        "--out",
        "run",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, hiding: dict[str, str]) -> Path:
    """Of a run elsewhere: images/, run/ and what it said, said.txt."""
    place = tmp_path_factory.mktemp("elsewhere")
    classes(place / "images", "cat", "dog", count=30)
    done = distill(hiding, place)
    assert done.returncode == 0, done.stderr
    (place / "said.txt").write_text(done.stderr, encoding="utf-8")
    return place


def test_elsewhere_is_elsewhere(hiding: dict[str, str], tmp_path: Path) -> None:
    for code, error in (("import fcntl", "ModuleNotFoundError"), ("import os; os.fork()", "AttributeError")):
        done = subprocess.run([sys.executable, "-c", code], env=os.environ | hiding, capture_output=True, text=True)
        assert done.returncode == 1
        assert error in done.stderr


def test_nothing_imports_what_posix_alone_has_at_its_top() -> None:
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            found = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not POSIX_ALONE & set(found), name


def test_help(hiding: dict[str, str], tmp_path: Path) -> None:
    done = mcd(hiding, tmp_path, "distill", "--help")
    assert done.returncode == 0, done.stderr
    assert "mps" in done.stdout


def test_a_run_streams_and_leaves_the_same_bytes(place: Path, tmp_path: Path) -> None:
    """Read ahead by threads elsewhere and by forked workers here, locked and written to disk in different ways."""
    os.symlink(place / "images", tmp_path / "images")
    done = distill({"PYTHONPATH": str(INSTALLED), "MCD_CACHE": str(tmp_path / "cache")}, tmp_path)
    assert done.returncode == 0, done.stderr
    for said in (done.stderr, (place / "said.txt").read_text(encoding="utf-8")):
        assert "are streamed from disk" in said
        assert "logits for view 1 of 1" in said
    assert finished(place / "run") == finished(tmp_path / "run")
    assert not (place / "run" / LOCK).exists()
    assert not (tmp_path / "run" / LOCK).exists()


def test_select(place: Path, hiding: dict[str, str]) -> None:
    done = mcd(hiding, place, "select", "--run", "run", "--max-macs", "1G")
    assert (done.returncode, done.stdout) == (0, "resnet10-xxxs\n"), done.stderr


def test_predict(place: Path, hiding: dict[str, str]) -> None:
    done = mcd(hiding, place, "predict", "--run", "run", "images/cat/000.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[0] == "images/cat/000.png"


def test_a_second_run_is_refused_until_the_first_is_killed(setting: dict[str, str], tmp_path: Path) -> None:
    with start(OWNER, setting, tmp_path) as owner:
        assert is_in(owner)
        done = mcd(setting, tmp_path, "distill", "--resume", "run")
        line = "mcd: another run is writing to run; wait for it or choose another --out"
        assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (2, "", line)
        end(owner)
    again = OWNER.replace('create("run", load_recipe(None, {}))', 'open("run")[0]')
    with start(again, setting, tmp_path) as other:
        assert is_in(other)
        other.communicate("")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["metrics.jsonl", "recipe.toml"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing is forked")
def test_what_a_killed_run_has_forked_does_not_keep_its_lock(tmp_path: Path) -> None:
    """DataLoader workers live for some seconds more."""
    child = 'import os, time\nif os.fork() == 0:\n    print("in", flush=True)\n    time.sleep(5)\n    os._exit(0)'
    code = textwrap.dedent(OWNER).replace('print("in", flush=True)', child)
    with start(code, {"PYTHONPATH": str(INSTALLED)}, tmp_path) as owner:
        assert is_in(owner)
        with pytest.raises(UserError, match="another run is writing"):
            RunFolder.open(str(tmp_path / "run"))
        end(owner)
        RunFolder.open(str(tmp_path / "run"))[0].close()


def test_the_cache_waits_for_its_lock(setting: dict[str, str], tmp_path: Path) -> None:
    """... and a killed owner gives it back."""
    with start(WAITER, setting, tmp_path) as first:
        assert is_in(first)
        with start(WAITER, setting, tmp_path) as second:
            got_in: list[bool] = []
            waiting = threading.Thread(target=lambda: got_in.append(is_in(second)))
            waiting.start()
            waiting.join(2)
            had_to_wait = not got_in
            end(first)
            waiting.join(20)
            end(second)
    assert had_to_wait
    assert got_in == [True]


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run is refused, which nobody could protect; the cache is used all the same."""
    fcntl = pytest.importorskip("fcntl")

    def missing(*args: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(RunFailed, match=r"cannot write .*No locks available"):
        RunFolder.create(str(tmp_path / "run"), tiny_recipe())
    with lock(tmp_path / "x.lock") as alone:
        assert not alone


def test_two_runs_of_one_process(tmp_path: Path) -> None:
    """A lock is the folder's, not the process's; closed twice, it lets go of its own alone."""
    first = RunFolder.create(str(tmp_path), tiny_recipe())
    with pytest.raises(UserError, match="another run is writing"):
        RunFolder.open(str(tmp_path))
    first.close()
    second, _ = RunFolder.open(str(tmp_path))
    first.close()
    with pytest.raises(UserError, match="another run is writing"):
        RunFolder.open(str(tmp_path))
    second.close()
    assert not (tmp_path / LOCK).exists()
    assert (tmp_path / METRICS).read_bytes() == b""


@pytest.mark.parametrize(("call", "code"), [("open", errno.EACCES), ("fsync", errno.EINVAL)])
def test_folders_that_cannot_be_synced(call: str, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        files.sync_folder(tmp_path)
        code = errno.EIO
        with pytest.raises(OSError, match="Input/output"):
            files.sync_folder(tmp_path)


def test_space_is_reserved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * files.BLOCK + 5
    for name in ("with", "without"):
        path = tmp_path / name
        path.write_bytes(b"header")
        os.truncate(path, size)
        files.reserve(path, 6)
        assert path.read_bytes() == b"header" + bytes(size - 6)
        assert path.stat().st_blocks * 512 >= size - 6
        monkeypatch.delattr(os, "posix_fallocate", raising=False)


def test_memory_is_asked_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError

    def status(answer: Any) -> int:
        assert answer[0] == ctypes.sizeof(answer)
        answer[1], answer[2] = 2**35, 2**33
        return 1

    monkeypatch.setattr(Path, "read_text", missing)  # /proc
    assert 2**20 < memory.available() < 2**50
    monkeypatch.delattr(os, "sysconf")
    assert memory.available() == memory.ASSUMED
    monkeypatch.setattr(sys, "platform", "win32")
    assert memory.available() == memory.ASSUMED
    kernel = type("Kernel", (), {"GlobalMemoryStatusEx": staticmethod(status)})
    monkeypatch.setattr(ctypes, "windll", type("Windll", (), {"kernel32": kernel}), raising=False)
    assert memory.available() == 2**33


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    found: list[bool] = []

    def run() -> None:
        with stop_on_signal() as stop:
            found.append(bool(stop))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]


def test_threads_read_ahead_in_order() -> None:
    images = torch.arange(200, dtype=torch.uint8).view(50, 1, 2, 2)
    batches = torch.randperm(50).split(4)
    asked: list[int] = []

    def each() -> Iterator[torch.Tensor]:
        for i, ids in enumerate(batches):
            asked.append(i)
            yield ids

    streamed = Streamed(images, torch.device("cpu"))
    read = streamed._by_threads(each())  # type: ignore[arg-type]
    assert torch.equal(next(read), images[batches[0]])
    assert 2 < len(asked) < 10  # ahead, but not all at once
    assert all(torch.equal(found, images[ids]) for found, ids in zip(read, batches[1:], strict=True))
    assert list(streamed._by_threads([])) == []


def test_mps_is_taken_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--device mps: .*use --device cpu or auto"):
        hardware.prepare("mps", "fp32", 1, deterministic=True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert hardware._resolved("auto") == "cpu"
    found = hardware.prepare("mps", "auto", 1, deterministic=True)
    assert (found.device.type, found.precision) == ("mps", "fp32")
    assert found.describe()["type"] == "mps"
    with pytest.raises(UserError, match="no native bf16"):
        hardware.prepare("mps", "bf16", 1, deterministic=True)
    monkeypatch.setattr(memory, "available", lambda: 4000)
    assert hardware.memory_for_images(found, None) == (1000, 1000)
    assert hardware.memory_for_images(found, 3000) == (3000, 3000)


def test_mps_serves_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run without torchrun"):
        distributed.Processes.join("mps")


class Without64(TorchDispatchMode):
    """An Apple GPU: no operator makes a float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not any(isinstance(t, torch.Tensor) and t.dtype == torch.float64 for t in tree_leaves(out)), func
        return out


@pytest.mark.parametrize("exact", [torch.float32, torch.float64])
def test_a_step_needs_no_float64_on_mps(exact: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert meters.sums_dtype(torch.device("mps")) == torch.float32
    for module in ("meters", "instance_weights"):
        monkeypatch.setattr(f"mcd_cli.engine.{module}.sums_dtype", lambda device: exact)
    with RunFolder.create(str(tmp_path / "run"), tiny_recipe()) as folder:
        run = make_run(tiny_recipe(), folder)
        trainer = run.trainer(run.plans[-1], rehearsal=True)
    batch = next(iter(trainer.loader.epoch(0)))
    if exact == torch.float64:  # else this test could not fail
        with pytest.raises(AssertionError), Without64():
            trainer.step(batch)
        return
    with Without64():
        trainer.step(batch)
        trainer.step(batch)
    assert trainer.updates

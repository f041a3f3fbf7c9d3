"""What every reader of foreign files promises, checked on any input: a value, or one McdError of one line.

The property tests in tests/hostile/ run a few derandomised examples; `python -m tests.support.fuzz` runs many.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from mcd_cli.errors import LONGEST, McdError

T = TypeVar("T")

EXAMPLES = int(os.environ.get("MCD_FUZZ_EXAMPLES", "0"))  # of a cheap reader, in a long run; 0: the quick one
SECONDS = 20  # for one input
MEMORY = 1.5 * 2**30  # bytes that the process may grow by, over all inputs

tried: Counter[str] = Counter()
refused: Counter[str] = Counter()


def fuzz(quick: int, cost: int = 1) -> settings:
    """Settings of a property test: so many examples in CI, always the same; EXAMPLES / cost in a long run."""
    return settings(
        max_examples=max(1, EXAMPLES // cost) if EXAMPLES else quick,
        derandomize=not EXAMPLES,
        deadline=None,  # `promise` has its own
        database=None,
        phases=[Phase.explicit, Phase.generate] if EXAMPLES else list(Phase),  # a long run shrinks nothing
        suppress_health_check=list(HealthCheck),
    )


def promise(reader: str, read: Callable[[], T], allowed: Path | None = None) -> T | None:
    """What `read` returns, or None where it refuses as it must; anything else fails the test.

    It may write below `allowed` alone, start no process, open no connection, and must end soon.
    """
    tried[reader] += 1
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with watched(allowed) as done, limited_time():
        try:
            value = read()
        except McdError as error:
            refused[reader] += 1
            check(error)
            value = None
    assert not done, f"{reader} did {done[:3]}"
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    assert grown < MEMORY, f"{reader} took {grown / 1e9:.1f} GB"
    return value


def check(error: McdError) -> None:
    """One line, not too long, nothing in it that a terminal would obey."""
    text = str(error)
    assert error.exit_code in (1, 2, 3, 4), text
    assert text
    assert text.isprintable(), ascii(text)
    assert len(text) <= 10 * LONGEST, len(text)


# --- what a reader does besides returning

RUNS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pty.spawn",
    "os.startfile",
}
CONNECTS = {"socket.connect", "socket.bind", "socket.getaddrinfo", "urllib.Request"}
CHANGES = {
    "os.mkdir", "os.rmdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.truncate", "os.chmod", "os.chown",
    "os.utime", "shutil.rmtree", "shutil.move", "shutil.copyfile",
}  # fmt: skip
OURS = (tempfile.gettempdir() + "/torch", str(Path("~/.cache").expanduser()), "/dev/", "/proc/")

_watching: list[tuple[Path | None, list[str]]] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if not _watching:
        return
    allowed, done = _watching[-1]
    if event in RUNS | CONNECTS:
        done.append(f"{event} {arguments!r:.200}")
    elif event == "open":
        path, mode, flags = arguments
        writes = (
            flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if mode is None else set("wax+") & set(mode)
        )
        if writes and not isinstance(path, int) and not _inside(path, allowed):
            done.append(f"open {path!r} {mode!r}")
    elif event in CHANGES:
        places = [a for a in arguments[:2] if isinstance(a, str | bytes | os.PathLike)]
        done.extend(f"{event} {place!r}" for place in places if not _inside(place, allowed))


def _inside(path: Any, allowed: Path | None) -> bool:
    real = os.path.realpath(os.fsdecode(path))
    if real.endswith(".pyc") or "__pycache__" in real or real.startswith(OURS):
        return True  # Python's own, and torch's
    return allowed is not None and Path(real).is_relative_to(os.path.realpath(allowed))


sys.addaudithook(_hook)


@contextmanager
def watched(allowed: Path | None) -> Iterator[list[str]]:
    """What is done inside to the machine, besides changes below `allowed`."""
    done: list[str] = []
    _watching.append((allowed, done))
    try:
        yield done
    finally:
        _watching.pop()


@contextmanager
def limited_time(seconds: float = SECONDS) -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"no end after {seconds} s")

    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def workplace() -> Iterator[Path]:
    """A folder of its own for one input, which is also where relative names would be written."""
    before = os.getcwd()
    with tempfile.TemporaryDirectory(prefix="hostile-") as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(before)


# --- inputs

NASTY_TEXT = [
    "", " ", ".", "..", "/", "../x", "~", "~no-such-user/x", "\0", "a\0b", "\n", "a\nb", "\r\n", "\x1b[31m",
    "\u202e", "é", "日本", "\U0001f600", "nan", "inf", "-1", "1e999", "0x10", "true", "None", "{", "[", "%s", "{0}",
    "a" * 300, "9" * 5000, "/etc/passwd", "/dev/zero", "/dev/stdin", "x/" * 200, "-", "--help", "=", "a=b=c",
    "resnet10-s", "torchvision:", "torchvision:../x", "digits", "a.", "\\", "C:\\x", "'", '"', "a.b.c",
]  # fmt: skip

NASTY_NUMBERS: list[Any] = [
    0, -1, 1, 2, 255, 256, 2**31, 2**32, 2**63, -(2**63), 2**64, 10**18, 10**19, 10**400,
    0.0, -0.0, 0.5, 1.5, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"),
]  # fmt: skip

texts = st.one_of(st.sampled_from(NASTY_TEXT), st.text(max_size=20))
scalars = st.one_of(st.none(), st.booleans(), st.sampled_from(NASTY_NUMBERS), st.integers(), st.floats(), texts)
trees = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=8,
)

EDITS = ["flip", "set", "cut", "drop", "double", "zeros", "ones", "insert"]
edits = st.lists(
    st.tuples(st.sampled_from(EDITS), st.floats(0, 1), st.integers(0, 255), st.integers(1, 64)), min_size=1, max_size=5
)


def edited(content: bytes, changes: list[tuple[str, float, int, int]], head: int | None = None) -> bytes:
    """The content after these changes; head: half of them fall into so many first bytes, where the structure stands."""
    out = bytearray(content)
    for i, (kind, place, value, length) in enumerate(changes):
        span = min(len(out), head) if head is not None and i % 2 else len(out)
        at = min(int(place * span), max(len(out) - 1, 0))
        match kind:
            case "flip" if out:
                out[at] ^= 1 << value % 8
            case "set" if out:
                out[at] = value
            case "cut":
                del out[at:]
            case "drop":
                del out[at : at + length]
            case "double":
                out[at:at] = out[at : at + length]
            case "zeros":
                out[at : at + length] = bytes(len(out[at : at + length]))
            case "ones":
                out[at : at + length] = b"\xff" * len(out[at : at + length])
            case "insert":
                out[at:at] = bytes([value]) * length
    return bytes(out)


paths = st.lists(st.integers(0, 30), min_size=1, max_size=5)
tree_edits = st.lists(
    st.tuples(paths, st.sampled_from(["replace", "replace", "delete", "rename"]), trees), min_size=1, max_size=3
)


def with_tree_edits(tree: Any, changes: list[tuple[list[int], str, Any]]) -> Any:
    """A nested document with some of its parts replaced, deleted or renamed; `tree` is changed."""
    for path, kind, value in changes:
        node = tree
        for i, step in enumerate(path):
            keys = list(node) if isinstance(node, dict) else list(range(len(node))) if isinstance(node, list) else []
            if not keys:
                break
            key = keys[step % len(keys)]
            if i < len(path) - 1 and isinstance(node[key], dict | list) and node[key]:
                node = node[key]
            elif kind == "delete":
                del node[key]
                break
            elif kind == "rename" and isinstance(node, dict):
                node[str(value)[:50]] = node.pop(key)
                break
            else:
                node[key] = value
                break
    return tree


class Evil:
    """What a pickle would execute: it leaves a mark in the working folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, ("executed",))

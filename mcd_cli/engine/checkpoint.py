"""The state of a run on disk: whole or not there, checked by its hash, nothing in it pickled."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from mcd_cli.errors import UserError
from mcd_cli.files import LONGEST_NAME, sha256_of, write_whole

STATE = re.compile(r"state-(\d{9})-([0-9a-f]{64})\.safetensors")
KEPT = 2  # the newest, and the one before it


StateParts = dict[str, Mapping[str, Tensor]]
"""Tensors by the part of a trainer that they belong to, and their name in it."""


@dataclass(frozen=True)
class State:
    """tensors by dotted name; position: plain JSON (which stage, which step, …)."""

    tensors: dict[str, Tensor]
    position: dict[str, Any]


class Checkpoints:
    """The folder `checkpoint/` of a run. A file's name holds the hash of its content, so it proves itself."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: State) -> None:
        """Add a state, then drop all but the two newest. Raises RunFailed when the disk is full."""
        self.folder.mkdir(exist_ok=True)
        states = self._states()
        number = states[-1][0] + 1 if states else 0
        content = serialise(state.tensors, {"position": json.dumps(state.position, sort_keys=True)})
        write_whole(self.folder / f"state-{number:09d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
        for _, path in self._states()[:-KEPT]:
            path.unlink()

    def load(self, warn: Callable[[str], None]) -> State | None:
        """The newest whole state (a torn one is passed over with a warning), or None where there is none."""
        states = self._states()
        for _, path in reversed(states):
            match = STATE.fullmatch(path.name)
            if match and sha256_of(path) == match[2]:
                return read_state(path)
            warn(f"checkpoint {path.name} is damaged; going on from the one before")
        if states:
            raise UserError(f"every checkpoint in {self.folder} is damaged; start again in another folder")
        return None

    def save_stage(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Write a finished stage's results once; returns the file name that states refer to."""
        self.folder.mkdir(exist_ok=True)
        content = serialise(tensors, {})
        file = f"{name}-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(self.folder / file, content)
        return file

    def load_stage(self, file: str) -> dict[str, Tensor]:
        """A finished stage's results; raises UserError when the file is gone or damaged."""
        path = self.folder / file
        is_name = file == path.name and len(file.encode(errors="replace")) <= LONGEST_NAME
        safe = is_name and path.parent == self.folder and path.is_file()
        if not safe or not file.endswith(f"-{sha256_of(path)}.safetensors"):
            raise UserError(f"{path} is missing or damaged; the run cannot go on, start it again in another folder")
        return read_state(path).tensors

    def _states(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = [(m, p) for p in self.folder.iterdir() if p.is_file() and (m := STATE.fullmatch(p.name))]
        return sorted((int(m[1]), p) for m, p in matches)


def serialise(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Safetensors bytes: a function of the values alone (sorted names, row-major, on the CPU)."""
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return save(plain, metadata=metadata or None)


def read_state(path: Path) -> State:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            position = json.loads((file.metadata() or {}).get("position", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return State(tensors, position)


@contextmanager
def state_of_another() -> Iterator[None]:
    """Taking up a state that is whole, but that this run cannot have written, is told in one line."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"--resume: the checkpoint is not of this run ({type(error).__name__}: {error}); "
            "start again in another folder"
        ) from None


def checked_position(position: dict[str, Any]) -> dict[str, Any]:
    """The position itself; raises ValueError unless its counters are whole numbers."""
    counters = {key: position[key] for key in ("number", "updates", "epochs_done")}
    if any(type(value) is not int or value < 0 for value in counters.values()):
        raise ValueError(f"counters {counters}")
    return position


def put(target: Tensor, value: Tensor) -> None:
    """Copy a saved value into a live tensor, keeping the live one's memory layout."""
    with torch.no_grad():
        target.copy_(value.to(target.dtype))  # sums of another device may be float64


def put_all(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for key, target in live.items():
        put(target, saved[key])


def join_parts(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """All parts in one, by `part:name`."""
    return {f"{part}:{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def split_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(":")
        parts.setdefault(part, {})[name] = value
    return parts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Momentum and moments by parameter position, `<i>.<key>`."""
    tensors = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{i}.{key}"] = value
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """The inverse: buffers get their parameter's memory layout back, so the next step is the same to the bit."""
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        i, key = name.split(".")
        parameter = parameters[int(i)]
        if value.shape == parameter.shape:
            live = torch.empty_like(parameter, dtype=value.dtype)
            put(live, value)
        else:
            live = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = live


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

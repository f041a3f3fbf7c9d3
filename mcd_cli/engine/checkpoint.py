"""Checkpoint files of a run: written atomically, verified by a hash, and free of pickles."""

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
KEPT = 2  # checkpoints: the newest and the one before it


StateParts = dict[str, Mapping[str, Tensor]]
"""Tensors by part of the trainer (students, optimizer, …) and by name."""


@dataclass(frozen=True)
class State:
    """The content of a checkpoint. tensors: by dotted name; position: plain JSON (stage, step, …)."""

    tensors: dict[str, Tensor]
    position: dict[str, Any]


class Checkpoints:
    """The folder `checkpoint/` of a run. Each file name contains the hash of the content, to detect damage."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: State) -> None:
        """Write a state, then delete all but the two newest. Raises RunFailed if the disk is full."""
        self.folder.mkdir(exist_ok=True)
        states = self._states()
        number = states[-1][0] + 1 if states else 0
        content = serialise(state.tensors, {"position": json.dumps(state.position, sort_keys=True)})
        write_whole(self.folder / f"state-{number:09d}-{hashlib.sha256(content).hexdigest()}.safetensors", content)
        for _, path in self._states()[:-KEPT]:
            path.unlink()

    def load(self, warn: Callable[[str], None]) -> State | None:
        """The newest intact state, or None without checkpoints; a damaged one is skipped with a warning.

        Raises UserError if all of them are damaged.
        """
        states = self._states()
        for _, path in reversed(states):
            match = STATE.fullmatch(path.name)
            if match and sha256_of(path) == match[2]:
                return read_state(path)
            warn(f"checkpoint {path.name} is damaged; resuming from the one before it")
        if states:
            raise UserError(f"every checkpoint in {self.folder} is damaged; start again in another folder")
        return None

    def save_stage(self, name: str, tensors: Mapping[str, Tensor]) -> str:
        """Write a finished stage's results; returns the file name, which later states refer to."""
        self.folder.mkdir(exist_ok=True)
        content = serialise(tensors, {})
        file = f"{name}-{hashlib.sha256(content).hexdigest()}.safetensors"
        write_whole(self.folder / file, content)
        return file

    def load_stage(self, file: str) -> dict[str, Tensor]:
        """Read a finished stage's results. Raises UserError if the file is missing or damaged."""
        path = self.folder / file
        is_name = file == path.name and len(file.encode(errors="replace")) <= LONGEST_NAME
        safe = is_name and path.parent == self.folder and path.is_file()
        if not safe or not file.endswith(f"-{sha256_of(path)}.safetensors"):
            raise UserError(f"{path} is missing or damaged, so the run cannot resume; start again in another folder")
        return read_state(path).tensors

    def _states(self) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matches = [(m, p) for p in self.folder.iterdir() if p.is_file() and (m := STATE.fullmatch(p.name))]
        return sorted((int(m[1]), p) for m, p in matches)


def serialise(tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> bytes:
    """Safetensors bytes that depend only on the values (sorted names, row-major, on the CPU)."""
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    return save(plain, metadata=metadata or None)


def read_state(path: Path) -> State:
    """Read a checkpoint file. Raises UserError if it is not a valid one."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            position = json.loads((file.metadata() or {}).get("position", "{}"))
    except (SafetensorError, OSError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path} cannot be read: {error}; start again in another folder") from None
    return State(tensors, position)


@contextmanager
def state_of_another() -> Iterator[None]:
    """Inside, any error from restoring an intact state that this run cannot have written becomes a UserError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(
            f"--resume: the checkpoint belongs to another run ({type(error).__name__}: {error}); "
            "start again in another folder"
        ) from None


def checked_position(position: dict[str, Any]) -> dict[str, Any]:
    """Returns the position. Raises ValueError unless its counters are non-negative integers."""
    counters = {key: position[key] for key in ("number", "updates", "epochs_done")}
    if any(type(value) is not int or value < 0 for value in counters.values()):
        raise ValueError(f"counters {counters}")
    return position


def put(target: Tensor, value: Tensor) -> None:
    """Copy a saved value into a tensor in use, which keeps its memory layout."""
    with torch.no_grad():
        target.copy_(value.to(target.dtype))  # sums saved on another device may be float64


def put_all(live: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for key, target in live.items():
        put(target, saved[key])


def join_parts(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One dictionary of all parts' tensors, by `part:name`."""
    return {f"{part}:{name}": value for part, tensors in parts.items() for name, value in tensors.items()}


def split_parts(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        part, _, name = key.partition(":")
        parts.setdefault(part, {})[name] = value
    return parts


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's momentum and moment tensors, named `<i>.<key>` for parameter i."""
    tensors = {}
    for i, parameter in enumerate(_parameters(optimizer)):
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"{i}.{key}"] = value
    return tensors


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore `optimizer_tensors` in each parameter's memory layout, so that the next step is bit-identical."""
    parameters = _parameters(optimizer)
    for name, value in tensors.items():
        i, key = name.split(".")
        parameter = parameters[int(i)]
        if value.shape == parameter.shape:
            restored = torch.empty_like(parameter, dtype=value.dtype)
            put(restored, value)
        else:
            restored = value.to(parameter.device, copy=True)
        optimizer.state[parameter][key] = restored


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]

"""A run's folder: made, locked, opened again. No torch here: the recipe is written before torch is imported."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from mcd_cli.errors import UserError
from mcd_cli.files import cannot_write, write_whole
from mcd_cli.recipe import Recipe, load_recipe

RECIPE, METRICS, MANIFEST, LOG = "recipe.toml", "metrics.jsonl", "ladder.json", "error.log"
CHECKPOINT, STUDENTS, PREDICTIONS = "checkpoint", "students", "predictions.safetensors"


class RunFolder:
    """The folder of one run, locked while this process lives (the lock dies with its owner).

    The lock lies on metrics.jsonl, through the one handle that writes it: closing any other handle of that file
    in this process would drop the lock.
    """

    def __init__(self, path: Path, *, is_new: bool) -> None:
        self.path = path
        self.is_new = is_new
        self._metrics = self._locked()

    @classmethod
    def create(cls, out: str | None, recipe: Recipe) -> RunFolder:
        """--out DIR itself (refused when not empty), or the next free runs/<dataset>-<method>-<n>."""
        try:
            if out is not None:
                path = Path(out)
                path.mkdir(parents=True, exist_ok=True)
                if any(path.iterdir()):
                    raise UserError(f"{out} is not empty; name another --out, or go on with --resume {out}")
            else:
                path = _next_folder(Path("runs"), f"{Path(recipe.dataset).name}-{recipe.method}")
        except (FileExistsError, NotADirectoryError):
            raise UserError(f"{out or 'runs'} is a file, not a folder; name another --out") from None
        except OSError as error:
            raise cannot_write(Path(out or "runs"), error, 0) from None
        folder = cls(path, is_new=True)
        write_whole(path / RECIPE, recipe.to_toml().encode())
        return folder

    @classmethod
    def open(cls, path: str) -> tuple[RunFolder, Recipe]:
        """A folder to resume, with its recipe."""
        folder = Path(path)
        if not (folder / RECIPE).is_file():
            raise UserError(f"--resume {path}: there is no run here (no {RECIPE})")
        return cls(folder, is_new=False), load_recipe(str(folder / RECIPE), {})

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_finished(self) -> bool:
        return (self.path / MANIFEST).is_file()

    def log(self, record: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        line = json.dumps(record) + "\n"
        try:
            self._metrics.write(line)
            self._metrics.flush()
        except OSError as error:
            raise cannot_write(self.path / METRICS, error, len(line)) from None

    def metrics_size(self) -> int:
        return (self.path / METRICS).stat().st_size

    def cut_metrics(self, size: int) -> None:
        """Forget the lines written after the state that a run resumes from."""
        if self.metrics_size() > size:
            os.truncate(self.path / METRICS, size)

    def discard(self) -> None:
        """Leave nothing behind of a run that never began: only for a new folder with no state in it."""
        if not self.is_new or (self.path / CHECKPOINT).exists() or self.metrics_size():
            return
        self.close()
        for name in (RECIPE, METRICS, LOG):
            (self.path / name).unlink(missing_ok=True)
        if not any(self.path.iterdir()):
            self.path.rmdir()
            if self.path.parent == Path("runs") and not any(self.path.parent.iterdir()):
                self.path.parent.rmdir()

    def close(self) -> None:
        """Let the lock go."""
        self._metrics.close()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _locked(self) -> IO[str]:
        try:
            metrics = (self.path / METRICS).open("a", encoding="utf-8")
            fcntl.lockf(metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"another run is writing to {self.path}; wait for it or name another --out") from None
        except OSError as error:
            raise cannot_write(self.path / METRICS, error, 0) from None
        return metrics


def _next_folder(parent: Path, stem: str) -> Path:
    parent.mkdir(exist_ok=True)
    number = 1
    while True:
        path = parent / f"{stem}-{number}"
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
        else:
            return path

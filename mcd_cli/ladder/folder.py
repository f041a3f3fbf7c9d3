"""Creates, locks and reopens a run's folder. No torch here: the recipe is written before torch is imported."""

from __future__ import annotations

import errno
import os
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from mcd_cli.errors import McdError, UserError
from mcd_cli.files import as_path, cannot_write, sweep, write_whole

if TYPE_CHECKING:
    from mcd_cli.recipe.schema import Recipe

# Every name in a run's folder. Never change one, because old runs use them.
RECIPE, METRICS, MANIFEST, LOG = "recipe.toml", "metrics.jsonl", "ladder.json", "error.log"
LOCK = ".lock"  # exists while a run writes; the file that a killed run leaves locks nothing
CHECKPOINT, STUDENTS, PREDICTIONS = "checkpoint", "students", "predictions.safetensors"
EXPORTS = "exports"
LOGGED = "loggers.json"
LADDER_PLOT, TRAINING_PLOT, COORDINATOR_PLOT = "ladder", "training", "coordinator"  # each as .png and .svg
PAGE, CARD = "report.html", "MODEL_CARD.md"


class RunFolder:
    """The folder of one run, locked until it is closed (the lock ends with its process)."""

    def __init__(self, path: Path, *, made: Sequence[Path] | None = None) -> None:
        """made: the folders that this run created, the innermost first; None for a resumed run."""
        self.path = path
        self._made = made
        refuse_links(path)
        self._lock = FileLock(path / LOCK, thread_local=False, fallback_to_soft=False)
        try:
            self._lock.acquire(timeout=0.2)  # without system locks, the first try only detects a dead owner
            self._metrics = (path / METRICS).open("a", encoding="utf-8", newline="\n")
        except Timeout:
            raise UserError(f"another run is writing to {path}; wait for it or choose another --out") from None
        except OSError as error:
            self._unlock()
            raise cannot_write(path / METRICS, error, 0) from None

    @classmethod
    def create(cls, out: str | None, recipe: Recipe) -> RunFolder:
        """--out DIR itself (refused if not empty), or the next free runs/<dataset>-<method>-<n>."""
        if out == "":
            raise UserError("--out is empty; name a folder")
        if out is None:
            name = os.path.basename(os.path.realpath(as_path(recipe.dataset)))
            made = next_folder(Path("runs"), f"{name}-{recipe.method}")
        else:
            made = make_folder(as_path(out))
        folder = cls(made[0] if out is None else as_path(out), made=made)
        try:
            write_whole(folder / RECIPE, recipe.to_toml().encode())
        except McdError:
            folder.discard()
            raise
        return folder

    @classmethod
    def open(cls, path: str) -> tuple[RunFolder, Recipe]:
        """Open a folder to resume; returns it with its recipe."""
        folder = as_path(path)
        if not (folder / RECIPE).is_file():
            raise UserError(f"--resume {path}: no run found there (no {RECIPE})")
        from mcd_cli.recipe.loading import load_recipe  # only a resumed run needs it

        recipe = load_recipe(str(folder / RECIPE), {})
        opened = cls(folder)
        sweep(folder)  # the folder is locked, so temporary files in it were left by a dead process
        return opened, recipe

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def is_finished(self) -> bool:
        return (self.path / MANIFEST).is_file()

    @property
    def is_blank(self) -> bool:
        """Whether there is no state yet to resume from."""
        return not (self.path / CHECKPOINT).exists() and not self.metrics_size()

    @property
    def resume_command(self) -> str:
        return f"mcd distill --resume {shlex.quote(str(self.path))}"

    def log(self, line: str) -> None:
        """Append a line to metrics.jsonl."""
        try:
            self._metrics.write(line)
            self._metrics.flush()
        except OSError as error:
            raise cannot_write(self.path / METRICS, error, len(line)) from None

    def metrics_size(self) -> int:
        return (self.path / METRICS).stat().st_size

    def sync_metrics(self) -> int:
        """Sync the lines so far to the disk, so that they survive a power cut; returns their size in bytes."""
        try:
            os.fsync(self._metrics.fileno())
        except OSError as error:
            raise cannot_write(self.path / METRICS, error, 0) from None
        return self.metrics_size()

    def cut_metrics(self, size: int) -> None:
        """Delete the lines written after the state that a run resumes from."""
        if size < 0:
            raise ValueError(f"metrics of {size} bytes")
        if self.metrics_size() > size:
            os.truncate(self.path / METRICS, size)

    def discard(self) -> None:
        """Delete a new run's files and folders, if it has not saved any state yet."""
        if self._made is None or not self.is_blank:
            return
        self.close()
        for name in (RECIPE, METRICS, LOG):
            (self.path / name).unlink(missing_ok=True)
        for folder in self._made:
            with suppress(OSError):  # not empty: another run's, or the user's
                folder.rmdir()

    def close(self) -> None:
        """Release the lock and delete its file."""
        self._metrics.close()
        self._unlock()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _unlock(self) -> None:
        if self._lock.is_locked:
            with suppress(OSError):  # Windows removes it only on release
                (self.path / LOCK).unlink()  # while it is locked: the next run creates a new one
            self._lock.release()


def refuse_links(folder: Path) -> None:
    """Check a run's folder before writing to it: links would lead elsewhere, and pipes would block.

    Raises UserError for any of these.
    """
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except OSError:  # a folder that cannot be listed cannot be written either, which raises its own error
        return
    for entry in entries:
        if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
            what = "a link" if entry.is_symlink() else "not a file"
            raise UserError(f"{entry.name!r} in {folder} is {what}; mcd writes only to a run's own files; remove it")


def make_folder(path: Path) -> list[Path]:
    """Create --out and the folders above it; returns the new ones, innermost first."""
    made: list[Path] = []
    try:
        for folder in (*reversed(path.parents), path):
            if not folder.is_dir():
                folder.mkdir()
                made.insert(0, folder)
        if any(path.iterdir()):
            raise UserError(f"{path} is not empty; choose another --out, or resume it: --resume {path}")
    except OSError as error:
        for folder in made:
            folder.rmdir()
        raise _cannot_make(path, error) from None
    return made


def next_folder(parent: Path, stem: str) -> list[Path]:
    """Create the first free parent/stem-<n>; returns the new folders, innermost first."""
    number = 1
    try:
        is_new = not parent.is_dir()
        parent.mkdir(exist_ok=True)
        while (parent / f"{stem}-{number}").exists():
            number += 1
        path = parent / f"{stem}-{number}"
        path.mkdir()
    except FileExistsError:
        if not parent.is_dir():
            raise UserError(f"{parent} is a file, not a folder; choose an --out") from None
        return next_folder(parent, stem)  # another run was faster
    except OSError as error:
        raise _cannot_make(parent, error) from None
    return [path, parent] if is_new else [path]


def _cannot_make(path: Path, error: OSError) -> McdError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return cannot_write(path, error, 0)
    if error.errno in (errno.EEXIST, errno.ENOTDIR):
        return UserError(f"{path} is a file or under one, not a folder; choose another --out")
    return UserError(f"cannot create the folder {path} ({error.strerror}); choose another --out")

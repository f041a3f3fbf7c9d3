"""`mcd predict`: labels images with a student. Imports torch only if the student is not exported."""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Unpack

from mcd_cli.errors import RunFailed, UserError, one_line, unknown
from mcd_cli.ladder.budget import Budget, Limits
from mcd_cli.ladder.manifest import Ladder, find_run, load_ladder
from mcd_cli.ladder.session import Images, Labelled, Logits, Session
from mcd_cli.ladder.variants import FLOAT32, Variant
from mcd_cli.machine import available_cores
from mcd_cli.quantities import accuracy
from mcd_cli.reporting.console import print_json, talk


def predict(
    images: Sequence[str],
    run: str | Path | None = None,
    *,
    student: str | None = None,
    top: int = 1,
    threads: int | None = None,
    calibrated: bool = True,
    min_confidence: str | float = 0.0,
    format: str = "text",
    json_output: bool = False,
    **limits: Unpack[Limits],
) -> None:
    """Print the `top` classes of every image by a run's student: `student`, or the one that `select` chooses.

    images: files, folders (including their subfolders) and patterns; `-` reads paths from stdin, one per line. Each
    line is printed as soon as it is known. threads: batches at a time; None for one per core. calibrated: probabilities
    are softmax(z / T) where the student has a temperature, else softmax(z). min_confidence: less likely classes are
    left out. format: one of `FORMATS`. Raises UserError before anything is printed, for a student's name together with
    a budget for example; RunFailed at the end if an image could not be read.
    """
    if student is not None and any(limit is not None for limit in limits.values()):
        raise UserError("name a --student or a budget, not both")
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    if json_output and format != "text":
        raise UserError(f"--json and --format {format} are two formats; give one")
    try:
        least = accuracy(min_confidence)
    except UserError as error:
        raise UserError(f"--min-confidence: {error}") from None
    budget = Budget.parse(**limits)
    ladder = load_ladder(find_run(run))
    variant = ladder.variant(student) if student else ladder.explain(budget, threads=threads or 1).demand()
    named = list(dict.fromkeys(path for image in images if image != "-" for path in image_files(image)))
    paths = chain(named, _from_stdin() if "-" in images else [])
    temperature = variant.temperature if calibrated else None
    session = _session(ladder, variant, calibrated)
    odds = "not calibrated" if temperature is None else f"at temperature {temperature:.3g}"
    talk().print(f"{ladder.folder}: {variant.name}, {variant.val:.1%} on val; probabilities {odds}")
    count = _Count()
    labelled = count.errors(_likely(session.label(paths, top, threads=threads or available_cores()), least))
    if json_output:
        about = {"run": str(ladder.folder), "student": variant.name, "temperature": temperature}
        print_json(about | {"images": [_document(image) for image in labelled]})
    else:
        FORMATS[format](labelled)
    if count.unread:
        raise RunFailed(f"{len(count.unread):,} of {count.all:,} images cannot be read: {_few(count.unread)}")


@dataclass
class _Count:
    """How many images there were, and which could not be read."""

    all: int = 0
    unread: list[str] = field(default_factory=list)

    def errors(self, images: Iterable[Labelled]) -> Iterator[Labelled]:
        """The same images; each error is printed on stderr."""
        for image in images:
            self.all += 1
            if image.error is not None:
                self.unread.append(image.path)
                print(image.error, file=sys.stderr)
            yield image


def _few(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + f" and {len(paths) - 3:,} more" * (len(paths) > 3)


def _likely(images: Iterable[Labelled], least: float) -> Iterator[Labelled]:
    for image in images:
        yield replace(image, top=[guess for guess in image.top if guess.probability >= least])


def _from_stdin() -> Iterator[str]:
    """A path per line."""
    for line in sys.stdin.buffer:
        path = os.fsdecode(line.rstrip(b"\r\n"))
        if path:
            yield path


def _print_text(images: Iterable[Labelled]) -> None:
    """A line per image: its path, then label and probability of each class."""
    for image in images:
        if image.error is None:
            guesses = [f"{one_line(guess.label)}  {guess.probability:.1%}" for guess in image.top]
            print("  ".join([one_line(image.path), *(guesses or ["-"])]), flush=True)


def _print_csv(images: Iterable[Labelled]) -> None:
    """A row per class: path, rank, label, probability; one row without them where none is likely enough."""
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["path", "rank", "label", "probability"])
    for image in images:
        path = os.fsencode(image.path).decode(errors="backslashreplace")
        ranked: list[tuple[object, ...]] = [(i, g.label, g.probability) for i, g in enumerate(image.top, 1)]
        if image.error is None:
            writer.writerows([path, *row] for row in ranked or [("", "", "")])
        sys.stdout.flush()


def _print_jsonl(images: Iterable[Labelled]) -> None:
    """A JSON object per image, with its classes or its error."""
    for image in images:
        print(json.dumps(_document(image)), flush=True)


def _document(image: Labelled) -> dict[str, object]:
    if image.error is not None:
        return {"path": image.path, "error": str(image.error)}
    return {"path": image.path, "top": [{"label": g.label, "probability": g.probability} for g in image.top]}


FORMATS = {"text": _print_text, "csv": _print_csv, "jsonl": _print_jsonl}


def image_files(image: str) -> Iterator[str]:
    """The image files that a name of a file or folder, or a pattern, refers to. Raises UserError for none."""
    from mcd_cli.data.listing import Walk

    path = Path(image)
    if path.is_dir():
        files = [os.path.join(image, file.path) for file in Walk(path).images("")]
        if not files:
            raise UserError(f"the folder {image!r} contains no images")
        yield from files
    elif path.exists() or not glob.has_magic(image):
        yield image
    else:
        matches = sorted(glob.glob(image, recursive=True))
        if not matches:
            raise UserError(f"no file matches {image!r}")
        for match in matches:
            yield from image_files(match) if Path(match).is_dir() else [match]


def _session(ladder: Ladder, variant: Variant, calibrated: bool) -> Session:
    """The exported file in onnxruntime, or the weights in torch if there is none; a call uses one thread."""
    if variant.file is not None or variant.format != FLOAT32:
        return variant.session(1, calibrated=calibrated)
    import torch

    torch.set_num_threads(1)
    model = variant.student.load()

    def run(images: Images) -> Logits:
        with torch.no_grad():
            logits: Logits = model(torch.from_numpy(images)).numpy()
        return logits

    temperature = variant.temperature if calibrated else None
    return Session(run, ladder.dataset.classes, ladder.dataset.input_shape, temperature)

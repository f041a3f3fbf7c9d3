"""`mcd predict`: labels images with a student. Imports torch only if the student is not exported."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Unpack

from mcd_cli.errors import UserError
from mcd_cli.ladder.budget import Budget, Limits
from mcd_cli.ladder.manifest import Ladder, find_run, load_ladder
from mcd_cli.ladder.session import Images, Logits, Session
from mcd_cli.ladder.variants import FLOAT32, Variant
from mcd_cli.reporting.console import print_json, results, table, talk


def predict(
    images: Sequence[str],
    run: str | Path | None = None,
    *,
    student: str | None = None,
    top: int = 1,
    threads: int = 1,
    calibrated: bool = True,
    json_output: bool = False,
    **limits: Unpack[Limits],
) -> None:
    """Print the `top` classes of every image by a run's student: `student`, or the one that `select` chooses.

    images: files, folders (including their subfolders) and patterns. calibrated: probabilities are softmax(z / T)
    where the student has a temperature, else softmax(z). Raises UserError before anything is printed:
    for an image that cannot be read, and for a student's name together with a budget.
    """
    if student is not None and any(limit is not None for limit in limits.values()):
        raise UserError("name a --student or a budget, not both")
    budget = Budget.parse(**limits)
    ladder = load_ladder(find_run(run))
    variant = ladder.variant(student) if student else ladder.explain(budget, threads=threads).demand()
    paths = list(dict.fromkeys(path for image in images for path in image_files(image)))
    temperature = variant.temperature if calibrated else None
    guesses = _session(ladder, variant, threads, calibrated).predict(paths, top)
    odds = "not calibrated" if temperature is None else f"at temperature {temperature:.3g}"
    talk().print(f"{ladder.folder}: {variant.name}, {variant.val:.1%} on val; probabilities {odds}")
    if json_output:
        labelled = [
            {"path": path, "top": [{"label": g.label, "probability": g.probability} for g in best]}
            for path, best in zip(paths, guesses, strict=True)
        ]
        about = {"run": str(ladder.folder), "student": variant.name, "temperature": temperature}
        print_json(about | {"images": labelled})
        return
    console = results()
    drawn = table(console, "image", "label", "probability")
    drawn.show_header = console.is_terminal
    for path, best in zip(paths, guesses, strict=True):
        for guess in best:
            drawn.add_row(path, guess.label, f"{guess.probability:.1%}")
    console.print(drawn)


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


def _session(ladder: Ladder, variant: Variant, threads: int, calibrated: bool) -> Session:
    """The exported file in onnxruntime, or the weights in torch if there is none."""
    if variant.file is not None or variant.format != FLOAT32:
        return variant.session(threads, calibrated=calibrated)
    import torch

    torch.set_num_threads(threads)
    model = variant.student.load()

    def run(images: Images) -> Logits:
        with torch.no_grad():
            logits: Logits = model(torch.from_numpy(images)).numpy()
        return logits

    temperature = variant.temperature if calibrated else None
    return Session(run, ladder.dataset.classes, ladder.dataset.input_shape, temperature)

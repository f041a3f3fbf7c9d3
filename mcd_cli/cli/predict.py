"""`mcd predict`: labels of images by a student; label and probability on stdout. No torch where it is exported."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from mcd_cli.errors import UserError
from mcd_cli.ladder.budget import Budget, Quantity
from mcd_cli.ladder.manifest import Ladder, find_run, load_ladder
from mcd_cli.ladder.session import Images, Logits, Session
from mcd_cli.ladder.variants import FLOAT32, Variant
from mcd_cli.reporting.console import print_json, results, table, talk


def predict(
    images: Sequence[str],
    run: str | Path | None = None,
    *,
    student: str | None = None,
    limits: Mapping[str, Quantity | None] | None = None,
    percentile: str | None = None,
    top: int = 1,
    threads: int = 1,
    json_output: bool = False,
) -> None:
    """Print the `top` classes of every image with a run's student: `student`, or what `select` takes.

    images: files, folders (with those below) and patterns. Raises UserError before anything is printed: for an
    image that cannot be read, for a name together with a budget.
    """
    limits = {name: limit for name, limit in (limits or {}).items() if limit is not None}
    if student is not None and (limits or percentile):
        raise UserError("name a --student or a budget, not both")
    budget = Budget.parse(percentile=percentile, **limits)
    ladder = load_ladder(find_run(run))
    variant = ladder.variant(student) if student else ladder.explain(budget, threads=threads).demand()
    paths = list(dict.fromkeys(path for image in images for path in found(image)))
    guesses = _session(ladder, variant, threads).predict(paths, top)
    talk().print(f"{ladder.folder}: {variant.name}, {variant.val:.1%} on V")
    if json_output:
        labelled = [
            {"path": path, "top": [{"label": g.label, "probability": g.probability} for g in best]}
            for path, best in zip(paths, guesses, strict=True)
        ]
        print_json({"run": str(ladder.folder), "student": variant.name, "images": labelled})
        return
    console = results()
    drawn = table(console, "image", "label", "probability")
    drawn.show_header = console.is_terminal
    for path, best in zip(paths, guesses, strict=True):
        for guess in best:
            drawn.add_row(path, guess.label, f"{guess.probability:.1%}")
    console.print(drawn)


def found(image: str) -> Iterator[str]:
    """The image files that a file's name, a folder's or a pattern stands for. Raises UserError for none."""
    from mcd_cli.data.listing import Walk

    path = Path(image)
    if path.is_dir():
        files = [os.path.join(image, file.path) for file in Walk(path).images("")]
        if not files:
            raise UserError(f"the folder {image!r} holds no images")
        yield from files
    elif path.exists() or not glob.has_magic(image):
        yield image
    else:
        matches = sorted(glob.glob(image, recursive=True))
        if not matches:
            raise UserError(f"no file matches {image!r}")
        for match in matches:
            yield from found(match) if Path(match).is_dir() else [match]


def _session(ladder: Ladder, variant: Variant, threads: int) -> Session:
    """The exported file; the weights themselves while there is none."""
    if variant.file is not None or variant.format != FLOAT32:
        return variant.session(threads)
    import torch

    torch.set_num_threads(threads)
    model = variant.student.load()

    def run(images: Images) -> Logits:
        with torch.no_grad():
            logits: Logits = model(torch.from_numpy(images)).numpy()
        return logits

    return Session(run, ladder.dataset.classes, ladder.dataset.input_shape)

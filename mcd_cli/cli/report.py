"""`mcd report`: writes a finished run as one HTML page and a model card, and prints their paths."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path

from mcd_cli.errors import UserError
from mcd_cli.ladder.folder import CARD, COORDINATOR_PLOT, LADDER_PLOT, PAGE, RECIPE, TRAINING_PLOT, refuse_links
from mcd_cli.ladder.manifest import find_run, load_ladder
from mcd_cli.reporting.console import print_json

SHOWN = {
    LADDER_PLOT: (
        "Accuracy over cost",
        "test accuracy over MACs, from the warm start to the distilled student",
    ),
    TRAINING_PLOT: ("Training", "accuracy on val by epoch, and the loss weights if C-NET learned them"),
    COORDINATOR_PLOT: (
        "What C-NET learned",
        "loss weights by epoch and by class; images with the most and the least weight on the teacher",
    ),
}
MAX_PICTURE = 2**25  # bytes
LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]{0,60}")


def report(
    run: str | Path | None = None, *, out: str | None = None, license: str = "unknown", json_output: bool = False
) -> None:
    """Write report.html and MODEL_CARD.md into the run's folder (or `out`). Raises UserError if it cannot.

    license: of the students, as the Hugging Face Hub calls it, for the card's head.
    """
    if not LICENSE.fullmatch(license):
        raise UserError(f"--license takes an identifier of the Hugging Face Hub, such as apache-2.0, not {license!r}")
    folder = find_run(run)
    ladder = load_ladder(folder)
    if out is None:
        refuse_links(folder)
    target = folder if out is None else Path(out)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create the folder {target} ({error.strerror}); choose another --out") from None
    if not os.access(target, os.W_OK):
        raise UserError(f"{target} is read-only; write elsewhere: --out DIR")

    from mcd_cli.files import write_whole
    from mcd_cli.ladder.metrics import read_metrics
    from mcd_cli.reporting.html import to_html
    from mcd_cli.reporting.model_card import card, coordinator, head, to_markdown
    from mcd_cli.reporting.plots import render

    sections = card(ladder)
    what, first, *others = sections
    what = replace(what, title="Model card")
    story = coordinator(ladder, read_metrics(folder))
    images = render(ladder)
    drawn = folder / f"{COORDINATOR_PLOT}.svg"  # shows training images, which only training itself can draw
    if drawn.is_file() and drawn.stat().st_size <= MAX_PICTURE:
        images[drawn.name] = drawn.read_bytes()
    pictures = {
        title: (images[f"{name}.svg"], shown) for name, (title, shown) in SHOWN.items() if f"{name}.svg" in images
    }
    recipe = folder / RECIPE
    toml = recipe.read_text(encoding="utf-8") if recipe.is_file() else "(missing)"
    name = f"{ladder.dataset.name}, {ladder.method}"
    note = f"{folder.resolve().name}; mcd {ladder.version}; {ladder.created}"
    page = to_html(f"Ladder: {name}", note, [first, story, what, *others], pictures, toml)
    paths = {target / PAGE: page, target / CARD: head(ladder, license) + to_markdown(f"Model card: {name}", sections)}
    for path, content in paths.items():
        write_whole(path, content.encode())
    if json_output:
        print_json({"run": str(folder), "page": str(target / PAGE), "card": str(target / CARD)})
    else:
        print(*paths, sep="\n")

"""`mcd compare`: from its options to a table of several methods under one protocol."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.cli.distill import (
    check,
    is_out_of_memory,
    out_of_memory,
    resolve,
    run_options,
    with_checkpoint_interval,
)
from mcd_cli.cli.options import SEEDS, CompareOptions, TrainingOptions
from mcd_cli.errors import Interrupted, McdError, UserError
from mcd_cli.ladder.folder import LADDER_PLOT, LOG, MANIFEST, make_folder, next_folder
from mcd_cli.methods import papers_methods
from mcd_cli.quantities import show_time
from mcd_cli.recipe.overlays import Contender, find_contenders

if TYPE_CHECKING:
    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.plan import Plan
    from mcd_cli.comparison.runner import Comparison, Cost
    from mcd_cli.comparison.schema import Document
    from mcd_cli.comparison.shared import Engine
    from mcd_cli.recipe.schema import Recipe


def compare(options: CompareOptions) -> None:
    """Train the cells that are not trained yet, or only estimate. stdout gets the tables and the verdict (or JSON)."""
    from mcd_cli.comparison.plan import Plan

    check(options)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("mcd compare trains in a single process; start it without torchrun")
    if options.resume is not None:
        if options.methods is not None or options.seeds is not None or options.overlays:
            raise UserError("--resume uses the plan in its folder; to add methods or seeds, name the folder with --out")
        folder = Path(options.resume)
        plan = Plan.load(folder)
        made: list[Path] = []
    else:
        plan = resolve_plan(options)
        folder, made = (Path(), []) if options.dry_run else _place(options.out, plan)
    plan = Plan(with_checkpoint_interval(plan.base, options), plan.contenders, plan.seeds)
    try:
        if not options.dry_run:
            plan.save(folder)
        _conduct(options, plan, folder)
    except (Interrupted, KeyboardInterrupt):
        command = f"mcd compare --resume {shlex.quote(str(folder))}"
        raise Interrupted("interrupted" if _discard(folder, made) else f"interrupted; resume with: {command}") from None
    except McdError:
        _discard(folder, made)
        raise
    except Exception as error:
        if not options.dry_run and not _discard(folder, made):
            (folder / LOG).write_text(traceback.format_exc(), encoding="utf-8")
        if is_out_of_memory(error):
            raise out_of_memory(plan.base) from None
        raise


def resolve_plan(options: CompareOptions) -> Plan:
    """The plan of a new comparison: the base recipe with its overlays, the contenders, and the seeds."""
    from mcd_cli.comparison.plan import Plan

    overlay: dict[str, Any] = {}
    for name in options.overlays or []:
        overlay |= dict(_overlay_named(name).changes)
    base = resolve(options, overlay)
    names = papers_methods() if options.methods is None else options.methods.split(",")
    contenders = [contender for name in names for contender in find_contenders(name.strip())]
    for contender in contenders:
        contender.recipe(base, base.seed)  # raises now if anything is wrong with it
    return Plan(base, tuple(contenders), parse_seeds(options.seeds or SEEDS))


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` or `0-4`; raises UserError for anything else."""
    seeds: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})(?:-(\d{1,18}))?\s*", part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if last < first or last - first > 999:
            raise UserError(f"--seeds takes numbers such as 0,1,2 or 0-4; got {text!r}")
        seeds += range(first, last + 1)
    return tuple(seeds)


def _overlay_named(name: str) -> Contender:
    contenders = find_contenders(name)
    if len(contenders) != 1:
        names = ", ".join(contender.name for contender in contenders)
        raise UserError(f"--overlay takes a single recipe; {name} is a folder of {names}")
    return contenders[0]


def _conduct(options: CompareOptions, plan: Plan, folder: Path) -> None:
    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.paper import papers_figures
    from mcd_cli.comparison.runner import Comparison

    paper = papers_figures(plan.base) if options.paper else None
    if options.paper and paper is None:
        raise UserError("--paper: the paper has no results for this data set, teacher and students")
    view = View(quiet=options.quiet)
    try:
        comparison = Comparison(plan, folder, training_engine(options, view), view)
        if comparison.to_train:
            cost = comparison.estimate()
            _print_estimate(comparison, cost, view)
            if options.dry_run:
                _print_plan(comparison, cost, options.json_output)
                return
            comparison.train()
        document = comparison.document([Path(path) for path in options.beside or []], paper)
    finally:
        view.close()
    _draw_cells(folder)
    _print(document, folder, options.json_output)
    view.say(f"the comparison is in {folder}")


def training_engine(options: TrainingOptions, view: View) -> Engine:
    """What trains a cell: recipe and folder → run."""
    from mcd_cli.engine.run import Run
    from mcd_cli.ladder.folder import RunFolder

    shared = run_options(options)

    def run(recipe: Recipe, folder: RunFolder) -> Run:
        return Run(recipe, folder, shared, view)

    return run


def _print_estimate(comparison: Comparison, cost: Cost, view: View) -> None:
    """Print the estimate, and a warning if C-NET will be updated too rarely to judge it."""
    from mcd_cli.comparison.document import FEW_UPDATES
    from mcd_cli.engine.events import WarningMessage

    todo = comparison.to_train
    view.say(f"{len(todo)} cells to train: about {show_time(cost.total_seconds)} in all")
    too_few = {name: number for name, number in cost.updates.items() if 0 < number < FEW_UPDATES}
    if too_few:
        counts = ", ".join(f"{name} {number}" for name, number in too_few.items())
        view(
            WarningMessage(
                f"C-NET updates: {counts}; fewer than {FEW_UPDATES} are too few to judge C-NET; "
                "try a smaller --batch-size, more --epochs, or --set coordinator.every=…"
            )
        )


def _print_plan(comparison: Comparison, cost: Cost, json_output: bool) -> None:
    from mcd_cli.reporting.console import print_json, results, table

    plan = comparison.plan
    if json_output:
        print_json(
            {
                "recipe": plan.base.model_dump(mode="json"),
                "seeds": list(plan.seeds),
                "contenders": [
                    {
                        "name": contender.name,
                        "changes": dict(contender.changes),
                        "estimate_seconds": cost.seconds.get(contender.name),
                        "updates": cost.updates.get(contender.name),
                    }
                    for contender in plan.contenders
                ],
                "estimate_seconds": cost.total_seconds,
            }
        )
        return
    console = results()
    console.print(plan.base.to_toml())
    drawn = table(console, "method", "time per seed", "C-NET updates")
    for contender in plan.contenders:
        seconds, updates = cost.seconds.get(contender.name), cost.updates.get(contender.name)
        drawn.add_row(contender.name, "-" if seconds is None else show_time(seconds), str(updates) if updates else "-")
    console.print(drawn)


def _print(document: Document, folder: Path, json_output: bool) -> None:
    """Print the result on stdout."""
    from rich.text import Text

    from mcd_cli.comparison.tables import caption, remarks, sheets, verdict
    from mcd_cli.reporting.console import print_json, results, table

    if json_output:
        print_json(document.content() | {"folder": str(folder)})
        return
    console = results()
    for sheet in sheets(document):
        console.print(sheet.title)
        drawn = table(console, *sheet.columns)
        for i, row in enumerate(sheet.rows):
            bold = [(i, j) in sheet.best for j in range(len(row))]
            mark = "" if console.is_terminal else "*"
            drawn.add_row(
                *(Text(cell + mark * best, style="bold" * best) for cell, best in zip(row, bold, strict=True))
            )
        needed = console.measure(drawn, options=console.options.update(width=10_000)).maximum
        console.width = max(needed, console.width)  # a narrow terminal wraps lines, but nothing is cut off
        console.print(drawn)
        console.print()
    for line in [*caption(document), *remarks(document)]:
        console.print(line)
    for line in verdict(document):
        console.print(f"verdict: {line}")


def _draw_cells(folder: Path) -> None:
    """Draw the plots that are missing: every cell is a complete run folder."""
    from mcd_cli.comparison.cells import CELLS
    from mcd_cli.ladder.manifest import load_ladder
    from mcd_cli.reporting.plots import draw

    for manifest in sorted((folder / CELLS).glob(f"*/{MANIFEST}")):
        if not (manifest.parent / f"{LADDER_PLOT}.svg").exists():
            draw(load_ladder(manifest.parent), manifest.parent)


def _place(out: str | None, plan: Plan) -> tuple[Path, list[Path]]:
    """The folder (--out, an unfinished one of the same plan, or the next free one), and which folders are new."""
    from mcd_cli.comparison.plan import DOCUMENT, PLAN, Plan

    if out == "":
        raise UserError("--out is empty; name a folder")
    if out is not None:
        folder = Path(out)
        if not (folder / PLAN).is_file():
            return folder, make_folder(folder)
        Plan.load(folder).refuse_other_base(plan)
        return folder, []
    stem = f"{Path(plan.base.dataset).resolve().name}-compare"
    for path in sorted(Path("runs").glob(f"{stem}-*/{PLAN}")):
        with suppress(UserError):
            if not (path.parent / DOCUMENT).exists() and Plan.load(path.parent) == plan:
                return path.parent, []
    made = next_folder(Path("runs"), stem)
    return made[0], made


def _discard(folder: Path, made: list[Path]) -> bool:
    """Delete a new comparison that has not trained anything; returns whether it was deleted."""
    from mcd_cli.comparison.plan import PLAN

    if not made or any(path.name != PLAN for path in folder.iterdir()):
        return False
    (folder / PLAN).unlink(missing_ok=True)
    for path in made:
        with suppress(OSError):  # not empty: it holds the user's files
            path.rmdir()
    return True

"""`mcd compare`: several methods under one protocol, from what the user typed to the table."""

from __future__ import annotations

import os
import re
import shlex
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.cli.distill import DistillOptions, check, is_out_of_memory, resolve, with_checkpoint_interval
from mcd_cli.errors import Interrupted, McdError, RunFailed, UserError
from mcd_cli.ladder.folder import LADDER_PLOT, LOG, MANIFEST, make_folder, next_folder
from mcd_cli.methods import papers_methods
from mcd_cli.quantities import show_time, size
from mcd_cli.recipe.overlays import Contender, find_contenders

if TYPE_CHECKING:
    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.plan import Plan
    from mcd_cli.comparison.runner import Comparison, Cost
    from mcd_cli.comparison.schema import Document
    from mcd_cli.comparison.shared import Engine
    from mcd_cli.recipe.schema import Recipe

SEEDS = "0,1,2"


@dataclass(frozen=True)
class CompareOptions:
    """What stands on the command line: what a run takes, and who is compared on which seeds."""

    run: DistillOptions
    methods: str | None = None
    seeds: str | None = None
    overlays: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)
    paper: bool = False


def compare(options: CompareOptions) -> None:
    """Train what is not trained yet, or only estimate. stdout gets the tables and the verdict (or JSON)."""
    from mcd_cli.comparison.plan import Plan

    check(options.run)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("mcd compare trains its cells in one process; start it without torchrun")
    if options.run.resume is not None:
        if options.methods is not None or options.seeds is not None or options.overlays:
            raise UserError("--resume goes on with the plan in its folder; to add methods or seeds, name it with --out")
        folder = Path(options.run.resume)
        plan = Plan.load(folder)
        made: list[Path] = []
    else:
        plan = resolve_plan(options)
        folder, made = (Path(), []) if options.run.dry_run else _place(options.run.out, plan)
    plan = Plan(with_checkpoint_interval(plan.base, options.run), plan.contenders, plan.seeds)
    try:
        if not options.run.dry_run:
            plan.save(folder)
        _conduct(options, plan, folder)
    except (Interrupted, KeyboardInterrupt):
        command = f"mcd compare --resume {shlex.quote(str(folder))}"
        raise Interrupted("interrupted" if _discard(folder, made) else f"interrupted; go on with: {command}") from None
    except McdError:
        _discard(folder, made)
        raise
    except Exception as error:
        if not options.run.dry_run and not _discard(folder, made):
            (folder / LOG).write_text(traceback.format_exc(), encoding="utf-8")
        if is_out_of_memory(error):
            smaller = max(2, plan.base.batch_size // 2)
            raise RunFailed(
                f"out of memory with a batch of {plan.base.batch_size}; try --batch-size {smaller} in a new comparison"
            ) from None
        raise


def resolve_plan(options: CompareOptions) -> Plan:
    """The base recipe with its overlays, the contenders by name, the seeds."""
    from mcd_cli.comparison.plan import Plan

    overlay: dict[str, Any] = {}
    for name in options.overlays:
        overlay |= dict(_overlay_named(name).changes)
    base = resolve(options.run, overlay)
    names = papers_methods() if options.methods is None else options.methods.split(",")
    contenders = [contender for name in names for contender in find_contenders(name.strip())]
    for contender in contenders:
        contender.recipe(base, base.seed)  # whatever is wrong with it is told now
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
        raise UserError(f"--overlay takes one recipe; {name} holds {names}")
    return contenders[0]


def _conduct(options: CompareOptions, plan: Plan, folder: Path) -> None:
    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.paper import papers_figures
    from mcd_cli.comparison.runner import Comparison

    paper = papers_figures(plan.base) if options.paper else None
    if options.paper and paper is None:
        raise UserError("--paper: no block of the paper's tables has this data set, teacher and students")
    view = View(quiet=options.run.quiet)
    try:
        comparison = Comparison(plan, folder, _engine(options.run, view), view)
        if comparison.to_train:
            cost = comparison.estimate()
            _tell(comparison, cost, view)
            if options.run.dry_run:
                _print_plan(comparison, cost, options.run.json_output)
                return
            comparison.train()
        document = comparison.document([Path(path) for path in options.beside], paper)
    finally:
        view.close()
    _draw_cells(folder)
    _print(document, folder, options.run.json_output)
    view.say(f"the comparison is in {folder}")


def _engine(options: DistillOptions, view: View) -> Engine:
    from mcd_cli.engine.run import Run, RunOptions
    from mcd_cli.ladder.folder import RunFolder

    memory = None if options.max_memory is None else size(options.max_memory)
    run_options = RunOptions(
        options.device, options.threads, options.force, options.skip_bad_images, memory, options.eager
    )

    def run(recipe: Recipe, folder: RunFolder) -> Run:
        return Run(recipe, folder, run_options, view)

    return run


def _tell(comparison: Comparison, cost: Cost, view: View) -> None:
    """The estimate, and a warning where C-NET will learn too seldom to judge it."""
    from mcd_cli.comparison.document import FEW_UPDATES
    from mcd_cli.engine.events import WarningMessage

    todo = comparison.to_train
    view.say(f"{len(todo)} cells to train: about {show_time(cost.total_seconds)} in all")
    too_few = {name: number for name, number in cost.updates.items() if 0 < number < FEW_UPDATES}
    if too_few:
        counts = ", ".join(f"{name} {number}" for name, number in too_few.items())
        view(
            WarningMessage(
                f"C-NET updates: {counts}; under {FEW_UPDATES} nothing is proved of C-NET; "
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
    drawn = table(console, "method", "time a seed", "C-NET updates")
    for contender in plan.contenders:
        seconds, updates = cost.seconds.get(contender.name), cost.updates.get(contender.name)
        drawn.add_row(contender.name, "-" if seconds is None else show_time(seconds), str(updates) if updates else "-")
    console.print(drawn)


def _print(document: Document, folder: Path, json_output: bool) -> None:
    """The result on stdout."""
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
        console.width = max(needed, console.width)  # a narrow terminal wraps, and cuts nothing
        console.print(drawn)
        console.print()
    for line in [*caption(document), *remarks(document)]:
        console.print(line)
    for line in verdict(document):
        console.print(f"verdict: {line}")


def _draw_cells(folder: Path) -> None:
    """Every cell is an ordinary run's folder, its picture included."""
    from mcd_cli.comparison.cells import CELLS
    from mcd_cli.ladder.manifest import load_ladder
    from mcd_cli.reporting.plots import draw

    for manifest in sorted((folder / CELLS).glob(f"*/{MANIFEST}")):
        if not (manifest.parent / f"{LADDER_PLOT}.svg").exists():
            draw(load_ladder(manifest.parent), manifest.parent)


def _place(out: str | None, plan: Plan) -> tuple[Path, list[Path]]:
    """The comparison's folder and what is new of it: --out, an unfinished one of the same plan, or the next free."""
    from mcd_cli.comparison.plan import DOCUMENT, PLAN, Plan

    if out == "":
        raise UserError("--out names no folder")
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
    """Leave nothing behind of a comparison that trained nothing; whether it was so."""
    from mcd_cli.comparison.plan import PLAN

    if not made or any(path.name != PLAN for path in folder.iterdir()):
        return False
    (folder / PLAN).unlink(missing_ok=True)
    for path in made:
        with suppress(OSError):  # not empty: the user's
            path.rmdir()
    return True

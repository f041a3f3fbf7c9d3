"""`mcd compare`: from its options to a table of several methods under one protocol."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
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
    from rich.console import Console

    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.graph import Graph
    from mcd_cli.comparison.paper import PaperFigures
    from mcd_cli.comparison.plan import Plan
    from mcd_cli.comparison.runner import Comparison, Cost
    from mcd_cli.comparison.schema import Document
    from mcd_cli.comparison.shared import Engine
    from mcd_cli.engine.events import Event
    from mcd_cli.recipe.schema import Recipe


def compare(options: CompareOptions) -> None:
    """Train the cells that are not trained yet, or only estimate. stdout gets the tables and the verdict (or JSON)."""
    result = run(options)
    if result is not None:
        _print(*result, options.json_output)


def run(options: CompareOptions) -> tuple[Mapping[str, Document], Path] | None:
    """Train what is not trained yet; returns the documents (see `resolve_plans`) and the folder.

    None if there is no document yet: after --dry-run, --nodes, --only, or if the jobs are only queued.
    """
    check(options)
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UserError("mcd compare trains in a single process; start it without torchrun")
    if options.only is not None and options.resume is None:
        raise UserError("--only is for a planned comparison: make one with --nodes, then give its folder to --resume")
    if options.on is not None and (options.only is not None or options.nodes or options.dry_run):
        raise UserError("--on runs all that is not finished; give it without --only, --nodes and --dry-run")
    if options.resume is not None:
        if options.methods is not None or options.seeds is not None or options.overlays:
            raise UserError("--resume uses the plan in its folder; to add methods or seeds, name the folder with --out")
        folder = Path(options.resume)
        plans = read_plans(folder)
        made: list[Path] = []
    else:
        plans = resolve_plans(options)
        folder, made = (Path(), []) if options.dry_run else _place(options.out, plans)
    plans = {part: replace(plan, base=with_checkpoint_interval(plan.base, options)) for part, plan in plans.items()}
    try:
        if not options.dry_run and options.only is None:
            plans = {part: plan.add_to(folder / part) for part, plan in plans.items()}
        documents = _conduct(options, plans, folder)
        return None if documents is None else (documents, folder)
    except (Interrupted, KeyboardInterrupt):
        command = f"mcd compare --resume {shlex.quote(str(folder))}"
        command += f" --only {shlex.quote(options.only)}" if options.only else ""
        raise Interrupted("interrupted" if _discard(folder, made) else f"interrupted; resume with: {command}") from None
    except McdError:
        _discard(folder, made)
        raise
    except Exception as error:
        if not options.dry_run and not _discard(folder, made):
            (folder / LOG).write_text(traceback.format_exc(), encoding="utf-8")
        if is_out_of_memory(error):
            raise out_of_memory(next(iter(plans.values())).base) from None
        raise


def resolve_plans(options: CompareOptions) -> dict[str, Plan]:
    """The plan of a new comparison, under the name ""; with several recipes, one under each recipe's name."""
    recipes = [options.recipe]
    if options.recipe is not None and not Path(options.recipe).exists():
        recipes = [name.strip() for name in options.recipe.split(",")]
    if len(recipes) == 1:
        return {"": resolve_plan(options)}
    plans: dict[str, Plan] = {}
    for recipe in recipes:
        part = Path(str(recipe)).name.removesuffix(".toml")
        if not part:
            raise UserError("--recipe takes one recipe or several: --recipe cifar100,tinyimagenet")
        if part in plans:
            raise UserError(f"--recipe names {part} twice; its results would share a folder")
        plans[part] = resolve_plan(replace(options, recipe=recipe))
    return plans


def read_plans(folder: Path) -> dict[str, Plan]:
    """The plan in a comparison's folder, under the name ""; or those of several recipes, under their folders' names."""
    from mcd_cli.comparison.plan import PLAN, Plan

    parts = [path.parent.name for path in sorted(folder.glob(f"*/{PLAN}"))]
    if (folder / PLAN).is_file() or not parts:
        return {"": Plan.load(folder)}
    return {part: Plan.load(folder / part) for part in parts}


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


def _conduct(options: CompareOptions, plans: Mapping[str, Plan], folder: Path) -> Mapping[str, Document] | None:
    from mcd_cli.cli.progress import View
    from mcd_cli.comparison.claims import claim
    from mcd_cli.comparison.runner import Comparison, graph_of, train

    view = View(quiet=options.quiet)
    engine = training_engine(options, view)

    def comparisons_of(plans: Mapping[str, Plan]) -> dict[str, Comparison]:
        return {part: Comparison(plan, folder / part, engine, view) for part, plan in plans.items()}

    try:
        papers = {part: _papers_figures(plan) if options.paper else None for part, plan in plans.items()}
        comparisons = comparisons_of(plans)
        if options.nodes:
            _print_nodes(graph_of(comparisons), options.json_output)
            return None
        if options.only is not None:
            train(comparisons, view, options.only)
            view.say(f"{options.only} is finished")
            return None
        if options.on is None and any(comparison.to_train for comparison in comparisons.values()):
            costs = {part: _estimate(comparison, part, view) for part, comparison in comparisons.items()}
            if options.dry_run:
                _print_plans(comparisons, costs, options.json_output)
                return None
        if options.on is not None and not _run_on_cluster(options, graph_of(comparisons), folder, view):
            view.say(f"when the jobs are finished, the tables are in {folder}")
            return None
        train(comparisons, view)
        while (latest := read_plans(folder)) != plans:  # another process has added methods or seeds
            plans, comparisons = latest, comparisons_of(latest)
            train(comparisons, view)
        beside = [Path(path) for path in options.beside or []]
        documents = {}
        for part, comparison in comparisons.items():
            with claim(comparison.folder, "tables", wait=True):
                documents[part] = comparison.document(beside, papers.get(part))
                _draw_cells(comparison.folder)
    finally:
        view.close()
    view.say(f"the comparison is in {folder}")
    return documents


def _run_on_cluster(options: CompareOptions, graph: Graph, folder: Path, view: View) -> bool:
    """Give the unfinished runs to the cluster of --on. Returns whether it has waited for them."""
    from mcd_cli.cluster.jobs import LOGS, Job, Share, cluster_named

    todo = graph.unfinished()
    cluster = cluster_named(str(options.on), Share(options.threads or 1, options.gpus))
    logs = folder.absolute() / LOGS

    def job(name: str, needs: tuple[str, ...], *more: str) -> Job:
        command = (sys.executable, "-m", "mcd_cli", "compare", "--resume", str(folder.absolute()), *more)
        command += ("--threads", str(options.threads or 1), "--device", options.device)
        command += ("--max-memory", options.max_memory) if options.max_memory else ()
        flags = {"--force": options.force, "--skip-bad-images": options.skip_bad_images, "--eager": options.eager}
        command += tuple(flag for flag, given in flags.items() if given)
        return Job(name, needs, command, os.getcwd(), logs / f"{name.replace('/', '.')}.log")

    names = {node.name for node in todo}
    jobs = [job(n.name, tuple(need for need in n.needs if need in names), "--only", n.name) for n in todo]
    cluster.run(jobs, job("tables", ()), view)
    return cluster.waits


def _papers_figures(plan: Plan) -> PaperFigures:
    from mcd_cli.comparison.paper import papers_figures

    figures = papers_figures(plan.base)
    if figures is None:
        raise UserError("--paper: the paper has no results for this data set, teacher and students")
    return figures


def training_engine(options: TrainingOptions, view: View) -> Engine:
    """What trains a cell: recipe and folder → run."""
    from mcd_cli.engine.run import Run
    from mcd_cli.ladder.folder import RunFolder

    shared = run_options(options)

    def emit(event: Event) -> None:
        view(event)
        if options.on_event is not None:
            options.on_event(event)

    def run(recipe: Recipe, folder: RunFolder) -> Run:
        return Run(recipe, folder, shared, emit)

    return run


def _estimate(comparison: Comparison, part: str, view: View) -> Cost:
    """Print the estimate, and a warning if C-NET will be updated too rarely to judge it."""
    from mcd_cli.comparison.document import FEW_UPDATES
    from mcd_cli.engine.events import WarningMessage

    cost = comparison.estimate()
    of_part = f"{part}: " if part else ""
    view.say(f"{of_part}{len(comparison.to_train)} cells to train: about {show_time(cost.total_seconds)} in all")
    too_few = {name: number for name, number in cost.updates.items() if 0 < number < FEW_UPDATES}
    if too_few:
        counts = ", ".join(f"{name} {number}" for name, number in too_few.items())
        view(
            WarningMessage(
                f"C-NET updates: {counts}; fewer than {FEW_UPDATES} are too few to judge C-NET; "
                "try a smaller --batch-size, more --epochs, or --set coordinator.every=…"
            )
        )
    return cost


def _print_nodes(graph: Graph, json_output: bool) -> None:
    """Print the nodes in the order of their needs: a table in a terminal, only names in a pipe."""
    from mcd_cli.reporting.console import print_json, results, table

    if json_output:
        print_json({"nodes": [{"name": n.name, "needs": list(n.needs), "finished": n.is_finished()} for n in graph]})
        return
    console = results()
    if not console.is_terminal:
        print("\n".join(node.name for node in graph))
        return
    drawn = table(console, "node", "needs", "finished")
    for node in graph:
        drawn.add_row(node.name, ", ".join(node.needs), "yes" if node.is_finished() else "")
    console.print(drawn)


def _print_plans(comparisons: Mapping[str, Comparison], costs: Mapping[str, Cost], json_output: bool) -> None:
    from mcd_cli.reporting.console import print_json, results, table

    if json_output:
        contents = {part: _planned(comparison.plan, costs[part]) for part, comparison in comparisons.items()}
        print_json(contents.get("", {"comparisons": contents}))
        return
    console = results()
    for part, comparison in comparisons.items():
        cost = costs[part]
        console.print(comparison.plan.base.to_toml())
        drawn = table(console, "method", "time per seed", "C-NET updates")
        for contender in comparison.plan.contenders:
            seconds, updates = cost.seconds.get(contender.name), cost.updates.get(contender.name)
            time = "-" if seconds is None else show_time(seconds)
            drawn.add_row(contender.name, time, str(updates) if updates else "-")
        console.print(drawn)


def _planned(plan: Plan, cost: Cost) -> dict[str, Any]:
    contenders = [
        {
            "name": contender.name,
            "changes": dict(contender.changes),
            "estimate_seconds": cost.seconds.get(contender.name),
            "updates": cost.updates.get(contender.name),
        }
        for contender in plan.contenders
    ]
    return {
        "recipe": plan.base.model_dump(mode="json"),
        "seeds": list(plan.seeds),
        "contenders": contenders,
        "estimate_seconds": cost.total_seconds,
    }


def _print(documents: Mapping[str, Document], folder: Path, json_output: bool) -> None:
    """Print the results on stdout."""
    from mcd_cli.reporting.console import print_json, results

    if json_output:
        contents = {part: document.content() | {"folder": str(folder / part)} for part, document in documents.items()}
        print_json(contents.get("", {"comparisons": contents}))
        return
    console = results()
    for part, document in documents.items():
        if part:
            console.print(f"{part}\n")
        _print_tables(document, console)


def _print_tables(document: Document, console: Console) -> None:
    from rich.text import Text

    from mcd_cli.comparison.tables import caption, remarks, sheets, verdict
    from mcd_cli.reporting.console import table

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


def _place(out: str | None, plans: Mapping[str, Plan]) -> tuple[Path, list[Path]]:
    """The folder (--out, an unfinished one of the same plans, or the next free one), and which folders are new."""
    from mcd_cli.comparison.plan import DOCUMENT, PLAN

    if out == "":
        raise UserError("--out is empty; name a folder")
    if out is not None:
        folder = Path(out)
        try:
            return folder, make_folder(folder)
        except UserError:
            if not any(folder.glob(PLAN)) and not any(folder.glob(f"*/{PLAN}")):
                raise
        there = read_plans(folder)
        if there.keys() != plans.keys():
            raise UserError(f"{folder} has a comparison of other recipes; choose another --out")
        for part, plan in plans.items():
            there[part].refuse_other_base(plan)
        return folder, []
    stem = f"{Path(plans[''].base.dataset).resolve().name}-compare" if "" in plans else "compare"
    for folder in sorted(Path("runs").glob(f"{stem}-*")):
        with suppress(UserError):
            if not all((folder / part / DOCUMENT).exists() for part in plans) and read_plans(folder) == plans:
                return folder, []
    made = next_folder(Path("runs"), stem)
    return made[0], made


def _discard(folder: Path, made: list[Path]) -> bool:
    """Delete a new comparison that has not trained anything; returns whether it was deleted."""
    from mcd_cli.comparison.claims import LOCKS
    from mcd_cli.comparison.plan import PLAN

    if not made or any(f.is_file() and f.name != PLAN and f.parent.name != LOCKS for f in folder.rglob("*")):
        return False
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    for path in made:
        with suppress(OSError):  # not empty: it holds the user's files
            path.rmdir()
    return True

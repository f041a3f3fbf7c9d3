"""`mcd distill`: from what the user typed to a finished ladder."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.cli.startup import quick_imports
from mcd_cli.errors import Interrupted, McdError, RunFailed, UserError
from mcd_cli.files import as_path, write_whole
from mcd_cli.ladder.folder import COORDINATOR_PLOT, LADDER_PLOT, LOG, RECIPE, RunFolder
from mcd_cli.models import torchvision_name
from mcd_cli.quantities import size
from mcd_cli.recipe.loading import load_recipe, parse_setting
from mcd_cli.recipe.schema import CheckpointSection, Recipe, name_students

if TYPE_CHECKING:
    from mcd_cli.engine.run import Run

FEW_STEPS = 150  # an estimate would take a tenth of so short a run, or more


@dataclass(frozen=True)
class DistillOptions:
    """What stands on the command line."""

    recipe: str | None = None
    settings: list[str] = field(default_factory=list)
    dataset: str | None = None
    teacher: str | None = None
    teacher_arch: str | None = None
    students: str | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    device: str = "auto"
    threads: int | None = None
    out: str | None = None
    resume: str | None = None
    force: bool = False
    skip_bad_images: bool = False
    max_memory: str | None = None
    dry_run: bool = False
    json_output: bool = False
    quiet: bool = False
    debug: bool = False
    eager: bool = False


def distill(options: DistillOptions) -> None:
    """Train, or go on, or only estimate. stdout gets the final table (or JSON), stderr everything else.

    Under torchrun the process of rank 0 alone has the folder and speaks.
    """
    check(options)
    writes = os.environ.get("RANK", "0") == "0"
    if options.resume is None:
        recipe = resolve(options)
        folder = RunFolder.create(options.out, recipe) if writes else None  # the recipe stands before torch is imported
    elif writes:
        folder, recipe = RunFolder.open(options.resume)
    else:
        folder, recipe = None, Recipe()  # process 0 tells it
    with folder or nullcontext():
        try:
            _train(options, with_checkpoint_interval(recipe, options), folder)
        except McdError:
            if folder is not None:
                folder.discard()
            raise
        except KeyboardInterrupt:
            if folder is not None:
                folder.discard()
                if (folder / RECIPE).exists():
                    raise Interrupted(f"interrupted; go on with: {folder.resume_command}") from None
            raise
        except Exception as error:
            if folder is not None:
                write_whole(folder / LOG, traceback.format_exc().encode(errors="backslashreplace"))
            if is_out_of_memory(error):
                smaller = max(2, recipe.batch_size // 2)
                raise RunFailed(
                    f"out of memory with a batch of {recipe.batch_size}; try --batch-size {smaller} in a new run"
                ) from None
            if "deterministic implementation" in str(error):
                raise UserError(
                    "a network of this run has no deterministic implementation on this device; "
                    "give up the same bits every time: --fast"
                ) from None
            raise


def is_out_of_memory(error: Exception) -> bool:
    """torch has an exception of its own on a GPU, and a plain RuntimeError on a CPU."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in phrases)


def resolve(options: DistillOptions, overlay: Mapping[str, Any] | None = None) -> Recipe:
    """Defaults < recipe < overlay < --set < flags."""
    settings = {**(overlay or {}), **dict(parse_setting(text) for text in options.settings)}
    flags = dict(options.overrides)
    if options.dataset is not None:
        flags["dataset"] = options.dataset
    if options.students is not None:
        flags["students"] = name_students(options.students.split(","))
    if options.teacher is not None:
        is_file = as_path(options.teacher).exists() or "/" in options.teacher or bool(Path(options.teacher).suffix)
        is_file = is_file and torchvision_name(options.teacher) is None
        if options.teacher_arch is not None and not is_file:
            raise UserError(f"--teacher-arch is for a teacher's file; {options.teacher!r} is an architecture itself")
        flags["teacher.file"] = options.teacher if is_file else None
        flags["teacher.arch"] = options.teacher_arch if is_file else options.teacher
    elif options.teacher_arch is not None:
        flags["teacher.arch"] = options.teacher_arch
    dataset = flags.get("dataset", settings.get("dataset"))
    return load_recipe(options.recipe, settings | flags, dataset=dataset)


def _train(options: DistillOptions, recipe: Recipe, folder: RunFolder | None) -> None:
    with quick_imports():
        from mcd_cli.cli.progress import View
        from mcd_cli.engine.hardware import joined
        from mcd_cli.engine.run import Run, RunOptions
        from mcd_cli.ladder.manifest import load_ladder
        from mcd_cli.reporting.ladder_table import print_ladder
        from mcd_cli.reporting.plots import draw

    processes = joined(options.device)
    recipe = processes.broadcast(recipe)
    is_finished = processes.broadcast(folder is not None and folder.is_finished)
    view = View(quiet=options.quiet)
    ladder = training = None
    try:
        if not is_finished:
            memory = None if options.max_memory is None else size(options.max_memory)
            run_options = RunOptions(
                options.device, options.threads, options.force, options.skip_bad_images, memory, options.eager
            )
            training = Run(recipe, folder, run_options, view if processes.is_main else lambda event: None)
            if options.resume is None:
                training.check()
                if options.dry_run:
                    seconds = training.estimate()
                    if folder is not None:
                        folder.discard()
                        _print_plan(training, seconds, options.json_output)
                    return
                if training.num_steps > FEW_STEPS:
                    training.estimate()
            ladder = training.train()
        if folder is None:
            processes.leave()
            return
        ladder = ladder or load_ladder(folder.path)
        if not (folder / f"{LADDER_PLOT}.svg").exists():
            draw(ladder, folder.path)
        if not (folder / f"{COORDINATOR_PLOT}.svg").exists():
            _draw_story(folder, training)
    finally:
        view.close()
    processes.leave()
    print_ladder(ladder, options.json_output)
    view.say(f"the ladder is in {folder.path}")


def _draw_story(folder: RunFolder, training: Run | None) -> None:
    """What C-NET learned, with the extreme images themselves where the data is at hand."""
    from mcd_cli.ladder.metrics import read_metrics
    from mcd_cli.reporting.coordinator_plot import draw_story

    pixels = None if training is None else lambda i: training.dataset.images[i].numpy()
    draw_story(read_metrics(folder.path), folder.path, pixels)


def _print_plan(training: Run, seconds: float, json_output: bool) -> None:
    """The result of a dry run: the resolved recipe, what the students cost, and the estimate."""
    from mcd_cli.models import build
    from mcd_cli.models.cost import profile
    from mcd_cli.quantities import show_count
    from mcd_cli.reporting.console import print_json, results, table

    recipe, dataset = training.recipe, training.dataset
    costs = {
        name: profile(build(arch, dataset.num_classes), dataset.input_shape) for name, arch in recipe.students.items()
    }
    if json_output:
        students = [
            {"name": name, "arch": recipe.students[name], "macs": cost.macs, "params": cost.params}
            for name, cost in costs.items()
        ]
        content = recipe.model_dump(mode="json")
        print_json({"recipe": content, "students": students, "estimate_seconds": seconds})
        return
    console = results()
    console.print(recipe.to_toml())
    drawn = table(console, "student", "MACs", "params")
    for name, cost in costs.items():
        drawn.add_row(name, show_count(cost.macs), show_count(cost.params))
    console.print(drawn)


def check(options: DistillOptions) -> None:
    if options.device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--device takes auto, cpu, cuda or mps, not {options.device!r}")
    if options.resume is not None:
        if options.dry_run:
            raise UserError("--dry-run estimates a new run; --resume goes on with one")
        given = [options.recipe, options.dataset, options.teacher, options.teacher_arch, options.students, options.out]
        changed = [key for key in options.overrides if key != "checkpoint.every"]
        if any(value is not None for value in given) or options.settings or changed:
            raise UserError(
                "--resume goes on with the recipe in its folder; "
                "only --device, --threads, --max-memory, --eager and --checkpoint-every may change"
            )


def with_checkpoint_interval(recipe: Recipe, options: DistillOptions) -> Recipe:
    if "checkpoint.every" not in options.overrides:
        return recipe
    section = CheckpointSection(every=options.overrides["checkpoint.every"])
    return recipe.model_copy(update={"checkpoint": section})

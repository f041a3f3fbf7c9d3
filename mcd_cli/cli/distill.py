"""`mcd distill`: from its options to a finished ladder."""

from __future__ import annotations

import os
import traceback
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mcd_cli.cli.options import DistillOptions, TrainingOptions
from mcd_cli.cli.startup import quick_imports
from mcd_cli.errors import Interrupted, McdError, RunFailed, UserError
from mcd_cli.files import as_path, write_whole
from mcd_cli.ladder.folder import COORDINATOR_PLOT, LADDER_PLOT, LOG, LOGGED, RECIPE, TRAINING_PLOT, RunFolder
from mcd_cli.loggers import names_of
from mcd_cli.models import library_of
from mcd_cli.quantities import size
from mcd_cli.recipe.loading import load_recipe, parse_setting
from mcd_cli.recipe.schema import CheckpointSection, Recipe, name_students

if TYPE_CHECKING:
    from mcd_cli.engine.events import Event, Listener
    from mcd_cli.engine.run import Run, RunOptions
    from mcd_cli.ladder.manifest import Ladder
    from mcd_cli.loggers.log import Log

FEW_STEPS = 150  # an estimate would make a run shorter than this at least a tenth longer


def distill(options: DistillOptions) -> None:
    """Train, resume, or only estimate. stdout gets the final table (or JSON), stderr everything else."""
    from mcd_cli.reporting.ladder_table import print_ladder

    ladder = train(options)
    if ladder is not None:
        print_ladder(ladder, options.json_output)


def train(options: DistillOptions) -> Ladder | None:
    """Train or resume; returns the ladder. None after a dry run, which prints the plan.

    Under torchrun only the process of rank 0 writes to the folder and returns the ladder.
    """
    check(options)
    names_of(options.log)
    options = _as_restarted(options)
    writes = os.environ.get("RANK", "0") == "0"
    if options.resume is None:
        recipe = resolve(options)
        # this writes the recipe, before torch is imported
        folder = RunFolder.create(options.out, recipe) if writes else None
    elif writes:
        folder, recipe = RunFolder.open(options.resume)
    else:
        folder, recipe = None, Recipe()  # the process of rank 0 broadcasts it
    with folder or nullcontext():
        try:
            return _train(options, with_checkpoint_interval(recipe, options), folder)
        except McdError:
            if folder is not None:
                folder.discard()
            raise
        except KeyboardInterrupt:
            if folder is not None:
                folder.discard()
                if (folder / RECIPE).exists():
                    raise Interrupted(f"interrupted; resume with: {folder.resume_command}") from None
            raise
        except Exception as error:
            if folder is not None:
                write_whole(folder / LOG, traceback.format_exc().encode(errors="backslashreplace"))
            if is_out_of_memory(error):
                raise out_of_memory(recipe) from None
            if "deterministic implementation" in str(error):
                raise UserError(
                    "a network of this run has no deterministic implementation on this device; "
                    "train without bit-reproducible results: --fast"
                ) from None
            raise


def _as_restarted(options: DistillOptions) -> DistillOptions:
    """Under `torchrun --max-restarts`, the group that takes over from a killed one resumes its run."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0" or options.resume is not None:
        return options
    if options.out is None:
        raise UserError("torchrun --max-restarts needs --out, so that a restarted group finds the run")
    is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    return (
        replace(options, resume=options.out) if is_restarted and (as_path(options.out) / RECIPE).is_file() else options
    )


def is_out_of_memory(error: Exception) -> bool:
    """By its message: torch raises its own exception on a GPU, but a plain RuntimeError on a CPU."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in phrases)


def out_of_memory(recipe: Recipe) -> RunFailed:
    smaller = max(2, recipe.batch_size // 2)
    return RunFailed(f"out of memory with a batch of {recipe.batch_size}; start again with --batch-size {smaller}")


def resolve(options: TrainingOptions, overlay: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe with its changes; each beats the one before: defaults, recipe, overlay, --set, other options."""
    settings = {**(overlay or {}), **dict(parse_setting(text) for text in options.settings or [])}
    flags = options.recipe_changes()
    if options.dataset is not None:
        flags["dataset"] = options.dataset
    if options.students is not None:
        flags["students"] = name_students(options.students.split(","))
    if options.teacher is not None:
        is_file = as_path(options.teacher).exists() or "/" in options.teacher or bool(Path(options.teacher).suffix)
        is_file = is_file and library_of(options.teacher) is None
        if options.teacher_arch is not None and not is_file:
            raise UserError(f"--teacher-arch is for a teacher's file, but {options.teacher!r} is an architecture")
        flags["teacher.file"] = options.teacher if is_file else None
        flags["teacher.arch"] = options.teacher_arch if is_file else options.teacher
    elif options.teacher_arch is not None:
        flags["teacher.arch"] = options.teacher_arch
    dataset = flags.get("dataset", settings.get("dataset"))
    return load_recipe(options.recipe, settings | flags, dataset=dataset)


def run_options(options: TrainingOptions) -> RunOptions:
    from mcd_cli.engine.run import RunOptions

    memory = None if options.max_memory is None else size(options.max_memory)
    return RunOptions(options.device, options.threads, options.force, options.skip_bad_images, memory, options.eager)


def _train(options: DistillOptions, recipe: Recipe, folder: RunFolder | None) -> Ladder | None:
    with quick_imports():
        from mcd_cli.cli.progress import View
        from mcd_cli.engine.hardware import joined
        from mcd_cli.engine.run import Run
        from mcd_cli.ladder.manifest import load_ladder
        from mcd_cli.reporting.plots import draw

    processes = joined(options.device)
    recipe = processes.broadcast(recipe)
    is_finished = processes.broadcast(folder is not None and folder.is_finished)
    view = View(quiet=options.quiet)
    ladder = training = log = None
    try:
        if not is_finished:
            listeners: list[Listener] = [view] if processes.is_main else []
            listeners += [options.on_event] if options.on_event is not None else []
            training = Run(recipe, folder, run_options(options), _to_all(listeners))
            if options.resume is None:
                training.check()
                if options.dry_run:
                    seconds = training.estimate()
                    if folder is not None:
                        folder.discard()
                        _print_plan(training, seconds, options.json_output)
                    return None
                if training.num_steps > FEW_STEPS:
                    training.estimate()
            if folder is not None:
                log = _log(options, recipe, folder, view)
                listeners += [log] if log is not None else []
            ladder = training.train()
        if folder is None:
            processes.leave()
            return None
        ladder = ladder or load_ladder(folder.path)
        if not (folder / f"{LADDER_PLOT}.svg").exists():
            draw(ladder, folder.path)
        if not (folder / f"{COORDINATOR_PLOT}.svg").exists():
            _draw_story(folder, training)
        if log is not None:
            log.finish(ladder, [folder / f"{name}.png" for name in (LADDER_PLOT, TRAINING_PLOT, COORDINATOR_PLOT)])
    finally:
        if log is not None:
            log.close()
        view.close()
    processes.leave()
    view.say(f"the ladder is in {folder.path}")
    return ladder


def _to_all(listeners: Sequence[Listener]) -> Listener:
    def emit(event: Event) -> None:
        for listener in listeners:
            listener(event)

    return emit


def _log(options: DistillOptions, recipe: Recipe, folder: RunFolder, emit: Listener) -> Log | None:
    """The trackers that --log names, and those that the run has used before; None if there are none."""
    names = names_of(options.log)
    if not names and not (folder / LOGGED).is_file():
        return None
    from mcd_cli.loggers.log import Log

    return Log(folder.path, names, recipe, emit)


def _draw_story(folder: RunFolder, training: Run | None) -> None:
    """Plot what C-NET learned, with images if this process has the data."""
    from mcd_cli.ladder.metrics import read_metrics
    from mcd_cli.reporting.coordinator_plot import draw_story

    pixels = None if training is None else lambda i: training.dataset.images[i].numpy()
    draw_story(read_metrics(folder.path), folder.path, pixels)


def _print_plan(training: Run, seconds: float, json_output: bool) -> None:
    """Print the result of a dry run: the resolved recipe, the cost of the students, and the estimate."""
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


def check(options: TrainingOptions) -> None:
    """Raises UserError for an unknown device, and for options that a resumed run cannot take."""
    if options.device not in ("auto", "cpu", "cuda", "mps"):
        raise UserError(f"--device takes auto, cpu, cuda or mps, not {options.device!r}")
    if options.resume is not None:
        if options.dry_run:
            raise UserError("--dry-run estimates a new run; drop it or --resume")
        given = [options.recipe, options.dataset, options.teacher, options.teacher_arch, options.students, options.out]
        changed = options.recipe_changes().keys() - {"checkpoint.every"}
        if any(value is not None for value in given) or options.settings or changed:
            raise UserError(
                "--resume uses the recipe in its folder; "
                "only --device, --threads, --max-memory, --eager and --checkpoint-every may change"
            )


def with_checkpoint_interval(recipe: Recipe, options: TrainingOptions) -> Recipe:
    if options.checkpoint_every is None:
        return recipe
    section = CheckpointSection(every=options.checkpoint_every)
    return recipe.model_copy(update={"checkpoint": section})

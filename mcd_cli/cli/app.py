"""The command line: a function per command, which imports what it needs when it is called."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer
from typer.exceptions import TyperException

import mcd_cli
from mcd_cli.cli import options as opt
from mcd_cli.cli.flags import expand
from mcd_cli.cli.help import WIDEST, GroupedHelp
from mcd_cli.cli.startup import exit_now
from mcd_cli.errors import Interrupted, McdError, UserError, reason_of
from mcd_cli.methods import help_text

app = typer.Typer(
    name="mcd",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"mcd {mcd_cli.__version__}")
        raise typer.Exit


@app.callback()
def mcd(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Distil one trained image classifier into a ladder of small students that help each other."""


@app.command(cls=GroupedHelp, epilog=f"\b\n{help_text()}")
@expand
def distill(options: opt.DistillOptions) -> None:
    """Train a ladder of students from one teacher.

    Without options: the demo, mc-distil on two-digit numbers, with a teacher that is trained first.
    """
    from mcd_cli.cli.distill import distill as run

    run(options)


@app.command(cls=GroupedHelp)
@expand
def compare(options: opt.CompareOptions) -> None:
    """Compare methods over several seeds under one protocol.

    All methods share the teacher, the split and, per student and seed, the warm start. Prints a table like the
    paper's Table 1 and a verdict. Running the same command again resumes an interrupted comparison.
    """
    from mcd_cli.cli.compare import compare as run

    run(options)


@app.command(cls=GroupedHelp)
@expand
def tune(options: opt.TuneOptions) -> None:
    """Choose the recipe's most important values on val, in short runs.

    One key after another, with the smallest students. Writes tuned.toml, a recipe for `mcd distill`.
    """
    from mcd_cli.cli.tune import tune as run

    run(options)


@app.command(cls=GroupedHelp)
def profile(
    archs: opt.Archs = None,
    input_shape: opt.InputShape = opt.INPUT_SHAPE,
    classes: opt.NumClasses = opt.NUM_CLASSES,
    run: opt.ProfiledRun = None,
    by_layer: opt.ByLayer = False,
    latency: opt.Latency = False,
    batch: opt.BatchSizes = "1",
    threads: opt.Threads = 1,
    warmup: opt.Warmup = 20,
    runs: opt.TimedCalls = 200,
    plot: opt.Plot = False,
    paper: opt.PaperCosts = False,
    json_output: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Show MACs, parameters and size of architectures or of a run's students."""
    from mcd_cli.cli.profile import profile as show

    show(
        archs or [],
        input_shape=input_shape,
        classes=classes,
        run=run,
        by_layer=by_layer,
        latency=latency,
        batch=batch,
        threads=threads,
        warmup=warmup,
        runs=runs,
        plot=plot,
        paper=paper,
        json_output=json_output,
    )


@app.command(cls=GroupedHelp)
@expand
def select(
    budget: opt.BudgetOptions,
    run: opt.Run = None,
    threads: opt.Threads = 1,
    format_: opt.SelectedFormat = None,
    print_: opt.Print = "name",
    json_output: opt.Json = False,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Choose the most accurate student within a budget, or the cheapest that is accurate enough.

    Its name is printed on stdout, the reasons on stderr.
    """
    from mcd_cli.cli.select import select as choose

    choose(run, threads=threads, format=format_, print_=print_, json_output=json_output, quiet=quiet, **budget.limits())


@app.command(cls=GroupedHelp)
def export(
    run: opt.Run = None,
    format_: opt.Format = "onnx",
    student: opt.ExportedStudents = None,
    int8: opt.Int8 = False,
    max_drop: opt.MaxDrop = 1.0,
    preprocess: opt.Preprocess = True,
    calibrated: opt.Calibrated = False,
    out: opt.ExportFolder = None,
    data_root: opt.DataRoot = None,
    again: opt.ExportAgain = False,
    json_output: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Write students as ONNX files that compute what the model does.

    Every file is checked on real images before it is kept; one that passed before, and is unchanged, is not written
    again. Prints one path per line.
    """
    from mcd_cli.cli.export import export as write

    write(
        run,
        format=format_,
        students=student,
        out=out,
        int8=int8,
        max_drop=max_drop,
        preprocess=preprocess,
        calibrated=calibrated,
        data_root=data_root,
        force=again,
        json_output=json_output,
    )


@app.command(cls=GroupedHelp)
@expand
def predict(
    images: opt.Images,
    budget: opt.BudgetOptions,
    run: opt.Run = None,
    student: opt.Student = None,
    top: opt.Top = 1,
    min_confidence: opt.MinConfidence = "0",
    format_: opt.PredictFormat = "text",
    threads: opt.PredictThreads = None,
    uncalibrated: opt.Uncalibrated = False,
    json_output: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Label images with a student, chosen by name or by budget.

    A line per image, as soon as it is known. An image that cannot be read is named on stderr; the others are labelled,
    and the exit code is 1.
    """
    from mcd_cli.cli.predict import predict as label

    label(
        images,
        run,
        student=student,
        top=top,
        threads=threads,
        min_confidence=min_confidence,
        format=format_,
        calibrated=not uncalibrated,
        json_output=json_output,
        **budget.limits(),
    )


@app.command(cls=GroupedHelp)
def report(
    run: opt.ReportedRun = None,
    out: opt.ReportFolder = None,
    license_: opt.License = "unknown",
    json_output: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Write an HTML page and a model card of a run.

    The page, report.html, needs no network; the card is MODEL_CARD.md, whose head the Hugging Face Hub reads. Prints
    both paths.
    """
    from mcd_cli.cli.report import report as write

    write(run, out=out, license=license_, json_output=json_output)


@app.command("list", cls=GroupedHelp)
def list_(kind: opt.ListedKind, json_output: opt.Json = False, debug: opt.Debug = False) -> None:
    """List the names that options take, and the runs under ./runs."""
    from mcd_cli.cli.list import list_names

    list_names(kind, json_output=json_output)


@app.command(cls=GroupedHelp)
def show(
    recipe: opt.ShownRecipe,
    settings: opt.Settings = None,
    json_output: opt.Json = False,
    debug: opt.Debug = False,
) -> None:
    """Show all keys of a recipe, and the recipe that each value comes from."""
    from mcd_cli.cli.show import show as show_recipe

    show_recipe(recipe, settings=settings or [], json_output=json_output)


def run_command() -> None:
    """Run the command of sys.argv: every known failure is one line on stderr and its exit code."""
    try:
        for argument in sys.argv[1:]:
            if argument != argument.encode(errors="ignore").decode():
                raise UserError(f"{argument!r} is not UTF-8; rename it")  # recipes and manifests are UTF-8
        code = app(standalone_mode=False) or 0
        if code == Interrupted.exit_code:  # typer's answer to KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()  # here, where a closed pipe is not an error
        sys.exit(code)
    except McdError as error:
        fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", Interrupted.exit_code)
    except TyperException as error:
        if len(sys.argv) == 1:  # `mcd` without a command: the message is the help page
            print(error.format_message(), file=sys.stderr)
            sys.exit(2)
        fail(error.format_message(), 2)
    except BrokenPipeError:
        # the reader of our output has left, for example `head`: nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        fail(f"internal error ({type(error).__name__}: {reason_of(error)}); rerun with --debug for the traceback", 1)


def main() -> None:
    """The console script `mcd`: run the command, then end the process at once."""
    code: object = 0
    try:
        run_command()
    except SystemExit as end:
        code = end.code
    exit_now(code if isinstance(code, int) else 1)


def fail(line: str, code: int) -> None:
    print(f"mcd: {line}", file=sys.stderr)
    sys.exit(code)

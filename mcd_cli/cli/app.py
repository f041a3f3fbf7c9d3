"""The command line: options in, one lazy call out. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from mcd_cli.cli.startup import exit_now
from mcd_cli.data import DATASETS
from mcd_cli.errors import Interrupted, McdError, UserError, reason_of
from mcd_cli.methods import METHODS, help_text

app = typer.Typer(
    name="mcd",
    help="Distil one trained image classifier into a ladder of small students that help each other.",
    no_args_is_help=True,
    add_completion=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.command(epilog=f"\b\n{help_text()}")
def distill(
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe's name or a .toml file.", show_default="named after the data set"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one recipe key; repeatable."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(DATASETS)}, or an image folder.", show_default="digits"),
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Where a built-in data set's files lie.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A weights file, or an architecture to train first.")] = None,
    teacher_arch: Annotated[
        str | None, typer.Option(help="Architecture of the teacher's file.", show_default="recognised")
    ] = None,
    teacher_norm: Annotated[
        str | None, typer.Option(help="auto, cifar10, cifar100, imagenet, half, none, or R,G,B/R,G,B.")
    ] = None,
    students: Annotated[str | None, typer.Option(help="a,b,… or name=arch,…")] = None,
    method: Annotated[
        str | None, typer.Option(help="One of the methods below.", autocompletion=METHODS.complete)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the distillation stage.")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    seed: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str, typer.Option(help="auto (cuda, else cpu), cpu, cuda, or mps (Apple; untested).")] = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    out: Annotated[str | None, typer.Option(help="The run's folder.", show_default="runs/DATASET-METHOD-N")] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with the run in this folder.")] = None,
    checkpoint_every: Annotated[str | None, typer.Option(help="20steps, 2min: saves besides each epoch's end.")] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="8G: larger data sets are streamed from disk.", show_default="half of what is free"),
    ] = None,
    sync_bn: Annotated[bool, typer.Option("--sync-bn", help="Under torchrun: BatchNorm over all processes.")] = False,
    fast: Annotated[
        bool, typer.Option("--fast", help="Kernels chosen by timing them: not the same bits every time.")
    ] = False,
    eager: Annotated[bool, typer.Option("--eager", help="On a GPU: no CUDA graphs; slower, the same bits.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on with a teacher near chance.")] = False,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after recipe, cost and estimate.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and the result.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Train a ladder of students from one teacher.

    Without options: the built-in digits, a teacher trained on the spot, method mc-distil.
    """
    from mcd_cli.cli.distill import DistillOptions
    from mcd_cli.cli.distill import distill as run

    overrides: dict[str, Any] = {
        "data_root": data_root,
        "image_size": image_size,
        "method": method,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
        "precision": precision,
        "deterministic": False if fast else None,
        "sync_bn": sync_bn or None,
        "teacher.norm": teacher_norm,
        "checkpoint.every": checkpoint_every,
    }
    options = DistillOptions(
        recipe=recipe,
        settings=set_ or [],
        dataset=dataset,
        teacher=teacher,
        teacher_arch=teacher_arch,
        students=students,
        overrides={key: value for key, value in overrides.items() if value is not None},
        device=device,
        threads=threads,
        max_memory=max_memory,
        out=out,
        resume=resume,
        force=force,
        skip_bad_images=skip_bad_images,
        dry_run=dry_run,
        json_output=json_output,
        quiet=quiet,
        debug=debug,
        eager=eager,
    )
    run(options)


@app.command()
def compare(
    methods: Annotated[
        str | None,
        typer.Option(help="a,b,…: methods, controls (kd-total-3, mc-distil-mean, …) or .toml files of changes."),
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="0,1,2 or 0-4.", show_default="0,1,2")] = None,
    overlay: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME|FILE", help="Changes to the recipe for all methods (noise-20, …); repeatable."),
    ] = None,
    paper: Annotated[bool, typer.Option("--paper", help="The paper's figures beside ours.")] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option(metavar="DIR", help="Draw this comparison's gains beside ours; repeatable."),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(help="A recipe's name or a .toml file.", show_default="named after the data set"),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one recipe key; repeatable."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(DATASETS)}, or an image folder.", show_default="digits"),
    ] = None,
    data_root: Annotated[str | None, typer.Option(help="Where a built-in data set's files lie.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the images in pixels.")] = None,
    teacher: Annotated[str | None, typer.Option(help="A weights file, or an architecture to train first.")] = None,
    teacher_arch: Annotated[
        str | None, typer.Option(help="Architecture of the teacher's file.", show_default="recognised")
    ] = None,
    teacher_norm: Annotated[
        str | None, typer.Option(help="auto, cifar10, cifar100, imagenet, half, none, or R,G,B/R,G,B.")
    ] = None,
    students: Annotated[str | None, typer.Option(help="a,b,… or name=arch,…")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of the distillation stage.")] = None,
    batch_size: Annotated[int | None, typer.Option()] = None,
    device: Annotated[str, typer.Option(help="auto (cuda, else cpu), cpu, cuda, or mps (Apple; untested).")] = "auto",
    precision: Annotated[str | None, typer.Option(help="auto, fp32 or bf16.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads.")] = None,
    max_memory: Annotated[
        str | None,
        typer.Option(help="8G: larger data sets are streamed from disk.", show_default="half of what is free"),
    ] = None,
    out: Annotated[
        str | None, typer.Option(help="The comparison's folder.", show_default="runs/DATASET-compare-N")
    ] = None,
    resume: Annotated[str | None, typer.Option(help="Go on with the comparison in this folder.")] = None,
    checkpoint_every: Annotated[str | None, typer.Option(help="20steps, 2min: saves besides each epoch's end.")] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Kernels chosen by timing them: not the same bits every time.")
    ] = False,
    eager: Annotated[bool, typer.Option("--eager", help="On a GPU: no CUDA graphs; slower, the same bits.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Go on with a teacher near chance.")] = False,
    skip_bad_images: Annotated[bool, typer.Option("--skip-bad-images", help="Leave unreadable images out.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop after recipe and estimate.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only warnings and the result.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Several methods on several seeds under one protocol: a table like the paper's Table 1, and what it proves.

    One teacher, one split, one warm start per student and seed. The same command again goes on where it stopped.
    """
    from mcd_cli.cli.compare import CompareOptions
    from mcd_cli.cli.compare import compare as run
    from mcd_cli.cli.distill import DistillOptions

    overrides: dict[str, Any] = {
        "data_root": data_root,
        "image_size": image_size,
        "epochs": epochs,
        "batch_size": batch_size,
        "precision": precision,
        "deterministic": False if fast else None,
        "teacher.norm": teacher_norm,
        "checkpoint.every": checkpoint_every,
    }
    options = DistillOptions(
        recipe=recipe,
        settings=set_ or [],
        dataset=dataset,
        teacher=teacher,
        teacher_arch=teacher_arch,
        students=students,
        overrides={key: value for key, value in overrides.items() if value is not None},
        device=device,
        threads=threads,
        max_memory=max_memory,
        out=out,
        resume=resume,
        force=force,
        skip_bad_images=skip_bad_images,
        dry_run=dry_run,
        json_output=json_output,
        quiet=quiet,
        debug=debug,
        eager=eager,
    )
    run(CompareOptions(options, methods, seeds, overlay or [], beside or [], paper))


@app.command()
def profile(
    archs: Annotated[
        list[str] | None, typer.Argument(metavar="ARCH…", help="Architectures; none: the paper's Table 3.")
    ] = None,
    input_shape: Annotated[str, typer.Option("--input", metavar="3xHxW", help="Input shape.")] = "3x32x32",
    classes: Annotated[int, typer.Option(min=1)] = 100,
    run: Annotated[str | None, typer.Option(help="The students of a finished run.")] = None,
    by_layer: Annotated[bool, typer.Option("--by-layer", help="Layer by layer.")] = False,
    latency: Annotated[bool, typer.Option("--latency", help="Measure on onnxruntime too; kept in the run.")] = False,
    batch: Annotated[str, typer.Option(metavar="N,N,…", help="Batches to time, besides one image.")] = "1",
    threads: Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of onnxruntime.")] = 1,
    warmup: Annotated[int, typer.Option(min=20, max=10**6, help="Calls before the timed ones.")] = 20,
    runs: Annotated[int, typer.Option(min=200, max=10**6, help="Timed calls.")] = 200,
    plot: Annotated[bool, typer.Option("--plot", help="Draw the run's pictures into its folder.")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """MACs, parameters and bytes of architectures, or of a run's students."""
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
        json_output=json_output,
    )


Run = Annotated[str | None, typer.Option(help="A finished run.", show_default="the newest under ./runs")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
# A budget's limits are lists so that a second one can be refused instead of silently winning.
MaxMacs = Annotated[list[str] | None, typer.Option("--max-macs", help="For example 16M.")]
MaxParams = Annotated[list[str] | None, typer.Option("--max-params", help="For example 320K.")]
MaxSize = Annotated[
    list[str] | None, typer.Option("--max-size", help="Of the ONNX file if exported, else of the weights: 400KB.")
]
MaxLatency = Annotated[
    list[str] | None, typer.Option("--max-latency", help="Of one image in onnxruntime, for example 2ms.")
]
MinAccuracy = Annotated[list[str] | None, typer.Option("--min-accuracy", help="On V: 0.72 or 72%.")]
Percentile = Annotated[str | None, typer.Option(help="Of the latency: p50, p90 or p99.", show_default="p50")]
Threads = Annotated[int, typer.Option(min=1, max=1024, help="CPU threads of onnxruntime.")]


def single_values(limits: dict[str, list[str] | None]) -> dict[str, Any]:
    """Each limit's one value; raises UserError where two contradict each other."""
    for name, given in limits.items():
        if given and len(given) > 1:
            raise UserError(f"--{name.replace('_', '-')} stands {len(given)} times ({', '.join(given)}); give it once")
    return {name: given[0] if given else None for name, given in limits.items()}


@app.command()
def select(
    run: Run = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
    percentile: Percentile = None,
    threads: Threads = 1,
    print_: Annotated[str, typer.Option("--print", metavar="WHAT", help="name, or the path: weights, onnx.")] = "name",
    json_output: Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Only the name.")] = False,
) -> None:
    """The most accurate student that fits a budget: its name on stdout, the reasons on stderr."""
    from mcd_cli.cli.select import select as choose

    limits = {"max_macs": max_macs, "max_params": max_params, "max_size": max_size}
    limits |= {"max_latency": max_latency, "min_accuracy": min_accuracy}
    choose(
        run,
        **single_values(limits),
        percentile=percentile,
        threads=threads,
        print_=print_,
        json_output=json_output,
        quiet=quiet,
    )


@app.command()
def export(
    run: Run = None,
    format_: Annotated[str, typer.Option("--format", help="onnx.")] = "onnx",
    student: Annotated[list[str] | None, typer.Option(help="Only this student (NAME.int8: both forms).")] = None,
    int8: Annotated[bool, typer.Option("--int8", help="Also as int8, where its accuracy on V allows.")] = False,
    max_drop: Annotated[float, typer.Option(metavar="POINTS", help="What int8 may lose, in points.")] = 1.0,
    preprocess: Annotated[
        bool, typer.Option("--preprocess/--no-preprocess", help="Normalisation inside the file.")
    ] = True,
    out: Annotated[str | None, typer.Option(help="Folder of the files.", show_default="the run's exports/")] = None,
    data_root: Annotated[str | None, typer.Option(help="Where the data set lies now.")] = None,
    json_output: Json = False,
) -> None:
    """Students as ONNX files, kept only when they compute what the model does; one path per line on stdout."""
    from mcd_cli.cli.export import export as write

    write(
        run,
        format=format_,
        students=student,
        out=out,
        int8=int8,
        max_drop=max_drop,
        preprocess=preprocess,
        data_root=data_root,
        json_output=json_output,
    )


@app.command()
def predict(
    images: Annotated[list[str], typer.Argument(metavar="IMAGE…", help="Files, folders, patterns.")],
    run: Run = None,
    student: Annotated[str | None, typer.Option(help="NAME or NAME.int8.", show_default="the most accurate")] = None,
    max_macs: MaxMacs = None,
    max_params: MaxParams = None,
    max_size: MaxSize = None,
    max_latency: MaxLatency = None,
    min_accuracy: MinAccuracy = None,
    percentile: Percentile = None,
    top: Annotated[int, typer.Option(min=1, help="How many classes per image.")] = 1,
    threads: Threads = 1,
    json_output: Json = False,
) -> None:
    """Labels of images by a student, chosen by name or by a budget: label and probability."""
    from mcd_cli.cli.predict import predict as label

    limits = {"max_macs": max_macs, "max_params": max_params, "max_size": max_size}
    limits |= {"max_latency": max_latency, "min_accuracy": min_accuracy}
    label(
        images,
        run,
        student=student,
        limits=single_values(limits),
        percentile=percentile,
        top=top,
        threads=threads,
        json_output=json_output,
    )


@app.command()
def report(
    run: Annotated[
        str | None, typer.Argument(metavar="DIR", help="A finished run.", show_default="the newest under ./runs")
    ] = None,
    out: Annotated[str | None, typer.Option(help="Folder of the two files.", show_default="the run's own")] = None,
    json_output: Json = False,
) -> None:
    """A run as one HTML page that needs no network (report.html), and its model card (MODEL_CARD.md)."""
    from mcd_cli.cli.report import report as write

    write(run, out=out, json_output=json_output)


def run_command() -> None:
    """Entry point: every known failure is one line on stderr and its exit code."""
    try:
        for argument in sys.argv[1:]:
            if argument != argument.encode(errors="ignore").decode():
                raise UserError(f"{argument!r} is not UTF-8; rename it")  # recipes and manifests are
        code = app(standalone_mode=False) or 0
        if code == Interrupted.exit_code:  # typer's word for KeyboardInterrupt
            raise KeyboardInterrupt
        sys.stdout.flush()  # here, where a reader who has left is no fault
        sys.exit(code)
    except McdError as error:
        fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        fail("interrupted", Interrupted.exit_code)
    except TyperException as error:
        fail(error.format_message(), 2)
    except BrokenPipeError:
        # whoever read our output has left: nothing is wrong, and nothing more can be said
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except Exception as error:
        if "--debug" in sys.argv:
            traceback.print_exc()
        fail(f"a fault of mcd ({type(error).__name__}: {reason_of(error)}); --debug shows where", 1)


def main() -> None:
    """What `mcd` runs: the command, then a quick exit."""
    code: object = 0
    try:
        run_command()
    except SystemExit as end:
        code = end.code
    exit_now(code if isinstance(code, int) else 1)


def fail(line: str, code: int) -> None:
    print(f"mcd: {line}", file=sys.stderr)
    sys.exit(code)

"""Every command-line option, once: its flag, its type and its help text. Nothing heavy is imported here.

A single option is an alias, used as `run: Run = None`. Options that belong together are the fields of a dataclass,
which `flags.expand` turns into flags.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, cast

from typer import Argument, Option

from mcd_cli.cli.flags import NO_FLAG
from mcd_cli.cluster import CLUSTERS
from mcd_cli.data import DATASETS
from mcd_cli.errors import McdError, UserError
from mcd_cli.ladder.budget import COSTS, PERCENTILES, Limits
from mcd_cli.ladder.variants import OTHERS
from mcd_cli.loggers import LOGGERS
from mcd_cli.methods import METHODS
from mcd_cli.models import ARCHITECTURES
from mcd_cli.norms import NORMS

SEEDS = "0,1,2"
INPUT_SHAPE, NUM_CLASSES = "3x32x32", 100

KINDS = ("recipes", "overlays", "methods", "losses", "architectures", "datasets", "loggers", "formats", "runs")


def _completed(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """The shell's completion of a value: of one name, or of the last one after a comma or =."""

    def complete(incomplete: str) -> list[str]:
        start = max(map(incomplete.rfind, ",=")) + 1
        return [incomplete[:start] + name for name in names() if name.startswith(incomplete[start:])]

    return complete


def _recipes() -> list[str]:
    from mcd_cli.recipe.loading import recipe_names

    return recipe_names()


def _contenders() -> list[str]:
    from mcd_cli.recipe.overlays import contender_names

    return contender_names()


def _runs() -> list[str]:
    return sorted(str(recipe.parent) for recipe in Path("runs").glob("*/recipe.toml"))


def _students() -> list[str]:
    """Of the newest run."""
    from mcd_cli.ladder.manifest import find_run, load_ladder

    try:
        return [student.name for student in load_ladder(find_run()).students]
    except McdError:
        return []


_OF_METHODS = _completed(lambda: METHODS)
_OF_ARCHITECTURES = _completed(lambda: ARCHITECTURES)
_OF_CONTENDERS = _completed(_contenders)
_OF_RECIPES = _completed(_recipes)
_OF_RUNS = _completed(_runs)
_OF_STUDENTS = _completed(_students)


def _of(*names: str) -> Callable[[str], list[str]]:
    return _completed(lambda: names)


_NEWEST = "the newest under ./runs"
_THREADS = Option(metavar="N", min=1, max=1024, help="Number of CPU threads.")

Run = Annotated[
    str | None,
    Option(
        "--run", "-r", metavar="DIR", help="Folder of a finished run.", show_default=_NEWEST, autocompletion=_OF_RUNS
    ),
]
DataRoot = Annotated[str | None, Option(metavar="DIR", help="Folder that holds the data set's files.")]
Threads = Annotated[int, _THREADS]
Json = Annotated[bool, Option("--json", help="Print one JSON document on stdout.")]
Quiet = Annotated[bool, Option("--quiet", "-q", help="Print only warnings and the result.")]
Debug = Annotated[bool, Option("--debug", help="Show the traceback of an internal error.")]

# profile
Archs = Annotated[
    list[str] | None,
    Argument(
        metavar="ARCH",
        help="Architectures, as in mcd list architectures.",
        autocompletion=_OF_ARCHITECTURES,
    ),
]
InputShape = Annotated[str, Option("--input", metavar="3xHxW", help="Shape of one image.")]
NumClasses = Annotated[int, Option("--classes", metavar="N", min=1, help="Number of classes.")]
ProfiledRun = Annotated[
    str | None,
    Option("--run", "-r", metavar="DIR", help="Profile the students of this run.", autocompletion=_OF_RUNS),
]
ByLayer = Annotated[bool, Option("--by-layer", help="Show the cost of each layer.")]
Latency = Annotated[bool, Option("--latency", help="Also measure latency in onnxruntime, and store it in the run.")]
BatchSizes = Annotated[str, Option("--batch", metavar="N,N,…", help="Batch sizes to time, in addition to 1.")]
Warmup = Annotated[int, Option(metavar="N", min=20, max=10**6, help="Number of calls before the timed ones.")]
TimedCalls = Annotated[int, Option("--runs", metavar="N", min=200, max=10**6, help="Number of timed calls.")]
Plot = Annotated[bool, Option("--plot", help="Draw the run's plots into its folder.")]
PaperCosts = Annotated[bool, Option("--paper", help="Show the paper's Table 3 beside our figures.")]

# select
Print = Annotated[
    str,
    Option(
        "--print",
        metavar="WHAT",
        help="What to print: name, or the path of its weights or of its file (onnx, or the --format).",
        autocompletion=_of("name", "weights", "onnx", *OTHERS),
    ),
]

SelectedFormat = Annotated[
    str | None,
    Option(
        "--format",
        metavar="NAME",
        help=f"Choose among the files of this format: {', '.join(OTHERS)}.",
        show_default="onnx and int8",
        autocompletion=_of(*OTHERS),
    ),
]

# export
Format = Annotated[
    str,
    Option(
        "--format",
        metavar="NAME,…",
        help=f"File formats: onnx (always written), {', '.join(OTHERS)}.",
        autocompletion=_of("onnx", *OTHERS),
    ),
]
ExportedStudents = Annotated[
    list[str] | None,
    Option(
        "--student",
        metavar="NAME",
        help="Export only this student; NAME.int8 exports float32 and int8. Repeatable.",
        autocompletion=_OF_STUDENTS,
    ),
]
Int8 = Annotated[bool, Option("--int8", help="Also export int8, unless it loses too much accuracy on val.")]
MaxDrop = Annotated[float, Option(metavar="POINTS", help="Accuracy on val that int8 may lose, in percentage points.")]
Preprocess = Annotated[bool, Option("--preprocess/--no-preprocess", help="Include input normalisation in the file.")]
Calibrated = Annotated[
    bool, Option("--calibrated", help="Divide the logits by the student's temperature inside the file.")
]
ExportFolder = Annotated[
    str | None,
    Option("--out", "-o", metavar="DIR", help="Folder for the files.", show_default="the run's exports/"),
]

ExportAgain = Annotated[bool, Option("--force", help="Export again what is there and unchanged.")]

# predict
Images = Annotated[
    list[str], Argument(metavar="IMAGE", help="Image files, folders or patterns; - reads paths from stdin.")
]
Student = Annotated[
    str | None,
    Option(
        metavar="NAME",
        help="Student to use; NAME.int8 for its int8 form.",
        show_default="the one that mcd select chooses",
        autocompletion=_OF_STUDENTS,
    ),
]
Top = Annotated[int, Option("--top", "-n", metavar="N", min=1, help="Number of classes to print per image.")]
MinConfidence = Annotated[
    str,
    Option("--min-confidence", metavar="SHARE", help="Leave out classes that are less probable, such as 0.9 or 90%."),
]
PredictFormat = Annotated[
    str,
    Option(
        "--format",
        metavar="NAME",
        help="Lines of text, csv or jsonl.",
        autocompletion=_of("text", "csv", "jsonl"),
    ),
]
PredictThreads = Annotated[
    int | None,
    Option("--threads", metavar="N", min=1, max=1024, help="Batches at a time.", show_default="one per core"),
]
Uncalibrated = Annotated[
    bool, Option("--uncalibrated", help="Show raw probabilities: do not divide the logits by the temperature.")
]

# report
ReportedRun = Annotated[
    str | None,
    Argument(metavar="DIR", help="Folder of a finished run.", show_default=_NEWEST, autocompletion=_OF_RUNS),
]
License = Annotated[str, Option("--license", metavar="NAME", help="Licence of the students, such as apache-2.0.")]
ReportFolder = Annotated[
    str | None, Option("--out", "-o", metavar="DIR", help="Folder for the two files.", show_default="the run's own")
]

# list, show
ListedKind = Annotated[str, Argument(metavar="KIND", help=f"One of: {', '.join(KINDS)}.", autocompletion=_of(*KINDS))]
ShownRecipe = Annotated[
    str,
    Argument(metavar="NAME|FILE|DIR", help="A recipe, a .toml file, or a run's folder.", autocompletion=_OF_RECIPES),
]
Settings = Annotated[
    list[str] | None,
    Option("--set", "-s", metavar="KEY=VALUE", help="Change one key of the recipe; repeatable."),
]


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """A budget. Its options are lists, so that repeating one is an error and does not silently replace it."""

    max_macs: Annotated[list[str] | None, Option(metavar="COUNT", help="Maximum number of MACs, such as 16M.")] = None
    max_params: Annotated[
        list[str] | None, Option(metavar="COUNT", help="Maximum number of parameters, such as 320K.")
    ] = None
    max_size: Annotated[
        list[str] | None,
        Option(metavar="SIZE", help="Maximum size of the ONNX file (of the weights if not exported), such as 400KB."),
    ] = None
    max_latency: Annotated[
        list[str] | None, Option(metavar="TIME", help="Maximum latency of one image in onnxruntime, such as 2ms.")
    ] = None
    min_accuracy: Annotated[
        list[str] | None,
        Option(metavar="ACCURACY", help="Minimum accuracy on val, such as 72%: choose the cheapest that reaches it."),
    ] = None
    within: Annotated[
        list[str] | None,
        Option(
            metavar="ERRORS",
            help="Choose the cheapest that is at most so many standard errors behind the best on val, such as 1se.",
        ),
    ] = None
    by: Annotated[
        list[str] | None,
        Option(
            metavar="COST",
            help=f"What the cheapest has least of: {', '.join(COSTS)}.",
            show_default=COSTS[0],
            autocompletion=_of(*COSTS),
        ),
    ] = None
    percentile: Annotated[
        list[str] | None,
        Option(
            metavar="NAME",
            help=f"Which latency to compare: {', '.join(PERCENTILES)}.",
            show_default=PERCENTILES[0],
            autocompletion=_of(*PERCENTILES),
        ),
    ] = None

    def limits(self) -> Limits:
        """The limits that were set; raises UserError for one that was set more than once."""
        limits = {name: values for name, values in vars(self).items() if values}
        for name, values in limits.items():
            if len(values) > 1:
                flag = f"--{name.replace('_', '-')}"
                raise UserError(f"{flag} was given {len(values)} times ({', '.join(values)}); give it once")
        return cast(Limits, {name: value for name, (value,) in limits.items()})


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """What `mcd distill` and `mcd compare` have in common."""

    recipe: Annotated[
        str | None,
        Option(
            metavar="NAME|FILE",
            help="Name of a recipe, or a .toml file.",
            show_default="the data set's",
            autocompletion=_OF_RECIPES,
        ),
    ] = None
    settings: Settings = None
    dataset: Annotated[
        str | None,
        Option(
            "--dataset",
            "-d",
            metavar="NAME|DIR",
            help=f"Data set: {', '.join(DATASETS)}, a folder of images, or a .csv or .jsonl of paths and labels.",
            show_default="numbers",
            autocompletion=_of(*DATASETS),
        ),
    ] = None
    data_root: DataRoot = None
    image_size: Annotated[int | None, Option(metavar="PIXELS", help="Height and width of the images.")] = None
    teacher: Annotated[
        str | None,
        Option(
            "--teacher",
            "-t",
            metavar="FILE|ARCH",
            help="File of weights, or an architecture to train first.",
            autocompletion=_OF_ARCHITECTURES,
        ),
    ] = None
    teacher_arch: Annotated[
        str | None,
        Option(
            metavar="ARCH",
            help="Architecture of the teacher's file.",
            show_default="recognised from the weights",
            autocompletion=_OF_ARCHITECTURES,
        ),
    ] = None
    teacher_norm: Annotated[
        str | None,
        Option(
            metavar="NORM",
            help=f"Input normalisation of the teacher's file: auto, {', '.join(NORMS)}, or R,G,B/R,G,B.",
            autocompletion=_of("auto", *NORMS),
        ),
    ] = None
    students: Annotated[
        str | None,
        Option(metavar="ARCH,…", help="Students: arch,arch,… or name=arch,…", autocompletion=_OF_ARCHITECTURES),
    ] = None
    epochs: Annotated[int | None, Option("--epochs", "-e", metavar="N", help="Epochs of distillation.")] = None
    batch_size: Annotated[int | None, Option(metavar="N", help="Images per training step.")] = None
    device: Annotated[
        str,
        Option(
            metavar="NAME",
            help="Device: auto (cuda if available, else cpu), cpu, cuda, or mps (untested).",
            autocompletion=_of("auto", "cpu", "cuda", "mps"),
        ),
    ] = "auto"
    precision: Annotated[
        str | None,
        Option(metavar="NAME", help="Number format: auto, fp32 or bf16.", autocompletion=_of("auto", "fp32", "bf16")),
    ] = None
    threads: Annotated[int | None, _THREADS] = None
    max_memory: Annotated[
        str | None,
        Option(
            metavar="SIZE",
            help="Stream data sets larger than this from disk, such as 8G.",
            show_default="half of the free memory",
        ),
    ] = None
    out: Annotated[
        str | None,
        Option("--out", "-o", metavar="DIR", help="Folder for the results.", show_default="a new one in ./runs"),
    ] = None
    resume: Annotated[
        str | None, Option(metavar="DIR", help="Resume the training in this folder.", autocompletion=_OF_RUNS)
    ] = None
    checkpoint_every: Annotated[
        str | None, Option(metavar="INTERVAL", help="Also save during an epoch, for example every 20steps or 2min.")
    ] = None
    fast: Annotated[bool, Option("--fast", help="Let cuDNN benchmark kernels; results are not bit-reproducible.")] = (
        False
    )
    eager: Annotated[bool, Option("--eager", help="Train without CUDA graphs: slower, bit-identical results.")] = False
    force: Annotated[bool, Option("--force", help="Train even if the teacher is near chance.")] = False
    skip_bad_images: Annotated[bool, Option("--skip-bad-images", help="Skip images that cannot be read.")] = False
    dry_run: Annotated[bool, Option("--dry-run", help="Print the recipe and the estimated time, then stop.")] = False
    json_output: Json = False
    quiet: Quiet = False
    debug: Debug = False
    on_event: Callable[[Any], None] | None = field(default=None, metadata=NO_FLAG)
    """From Python: called with each event of the training (`mcd_cli.engine.events`)."""

    def recipe_changes(self) -> dict[str, Any]:
        """The keys of the recipe that these options set; data set, teacher and students are resolved later."""
        return _given(
            {
                "data_root": self.data_root,
                "image_size": self.image_size,
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "precision": self.precision,
                "deterministic": False if self.fast else None,
                "teacher.norm": self.teacher_norm,
                "checkpoint.every": self.checkpoint_every,
            }
        )


@dataclass(frozen=True, kw_only=True)
class DistillOptions(TrainingOptions):
    """The options of `mcd distill`."""

    method: Annotated[
        str | None,
        Option("--method", "-m", metavar="NAME", help="One of the methods below.", autocompletion=_OF_METHODS),
    ] = None
    seed: Annotated[int | None, Option(metavar="N", help="Seed of the initial weights, batches and augmentation.")] = (
        None
    )
    sync_bn: Annotated[bool, Option("--sync-bn", help="Under torchrun: BatchNorm statistics over all processes.")] = (
        False
    )
    log: Annotated[
        str | None,
        Option(metavar="NAME,…", help=f"Also log to experiment trackers: {', '.join(LOGGERS)}."),
    ] = None

    def recipe_changes(self) -> dict[str, Any]:
        own = {"method": self.method, "seed": self.seed, "sync_bn": self.sync_bn or None}
        return super().recipe_changes() | _given(own)


@dataclass(frozen=True, kw_only=True)
class CompareOptions(TrainingOptions):
    """The options of `mcd compare`."""

    methods: Annotated[
        str | None,
        Option(
            metavar="NAME,…",
            help=f"Methods ({', '.join(METHODS)}), controls (kd-total-3, mc-distil-mean, …) or .toml files of changes.",
            show_default="the paper's",
            autocompletion=_OF_CONTENDERS,
        ),
    ] = None
    seeds: Annotated[str | None, Option(metavar="N,…", help="Seeds: 0,1,2 or 0-4.", show_default=SEEDS)] = None
    overlays: Annotated[
        list[str] | None,
        Option(
            "--overlay",
            metavar="NAME|FILE",
            help="Change the recipe of all methods (noise-20, …); repeatable.",
            autocompletion=_OF_CONTENDERS,
        ),
    ] = None
    nodes: Annotated[bool, Option("--nodes", help="Save the plan and list its runs, then stop.")] = False
    only: Annotated[
        str | None,
        Option(metavar="NODE", help="With --resume: train this run of --nodes, and what it needs, in this process."),
    ] = None
    on: Annotated[
        str | None,
        Option(
            metavar="CLUSTER",
            help=f"Run on a cluster that shares the folder: {'; '.join(spec.usage for spec in CLUSTERS.values())}.",
        ),
    ] = None
    gpus: Annotated[
        float, Option(metavar="N", min=0, help="With --on: GPUs of each run; 0.25 lets four share one.")
    ] = 0
    paper: Annotated[bool, Option("--paper", help="Show the paper's results beside ours.")] = False
    beside: Annotated[
        list[str] | None,
        Option(metavar="DIR", help="Also plot the gains of the comparison in this folder; repeatable."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class TuneOptions(TrainingOptions):
    """The options of `mcd tune`."""

    method: Annotated[
        str | None,
        Option("--method", "-m", metavar="NAME", help="Method whose keys are tuned.", autocompletion=_OF_METHODS),
    ] = None
    grid: Annotated[
        list[str] | None,
        Option(
            metavar="KEY=VALUE,…",
            help="Values to try for a key of the recipe; repeatable, tuned in this order.",
            show_default="total, λ, τ and weight decay",
        ),
    ] = None
    pilots: Annotated[int, Option(metavar="N", min=1, help="Number of students, the smallest first, to tune with.")] = 2
    pilot_epochs: Annotated[
        int | None,
        Option(metavar="N", min=1, help="Epochs of a run.", show_default="a fifth of the recipe's, at least 5"),
    ] = None
    seeds: Annotated[str, Option(metavar="N,…", help="Seeds: 0,1,2 or 0-4.")] = "0"

    def recipe_changes(self) -> dict[str, Any]:
        return super().recipe_changes() | _given({"method": self.method})


def _given(changes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in changes.items() if value is not None}

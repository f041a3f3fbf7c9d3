"""Recipes: everything that decides a run's result, typed, frozen, read from TOML. No torch here."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError, unknown
from mcd_cli.files import as_path, read_small
from mcd_cli.methods import METHODS, OPTIONS
from mcd_cli.models import ARCHITECTURES, LOSSES, SCALAR, TORCHVISION
from mcd_cli.norms import parse_norm
from mcd_cli.quantities import interval

STUDENT_NAME = re.compile(r"[a-z0-9_-]{1,100}")  # it becomes a file's name
PAPER_STUDENTS = {f"resnet10-{size}": f"resnet10-{size}" for size in ("m", "s", "xs", "xxs", "xxxs")}

MAX_BYTES = 2**16  # of a recipe's file
MAX_BASES = 20  # recipes that extend each other
MAX_DEPTH = 10  # dots of a key
MAX_DOTS = 100  # of a line
MAX_EPOCHS = 1_000_000
MAX_SEED = 2**63 - 1  # what every TOML and JSON reader can hold


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class TeacherSection(Section):
    """The frozen teacher: a file, or an architecture that the same engine trains first."""

    file: str | None = Field(None, min_length=1)
    """A weights file."""
    arch: str | None = None
    """An architecture to train first (kept in the cache); with `file`: the architecture of that file."""
    norm: str = "auto"
    """Normalisation of a teacher's file: `auto`, `cifar10`, `cifar100`, `imagenet`, `half`, `none` or `R,G,B/R,G,B`."""
    pretrained: bool = False
    """Start a torchvision teacher from its ImageNet weights."""
    epochs: int = Field(200, ge=1, le=MAX_EPOCHS)
    """Epochs of a teacher that is trained here."""
    lr: float = Field(0.1, gt=0)
    """Its learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Its momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """Its weight decay."""
    views: int = Field(0, ge=0, le=10_000)
    """K stored views: an image has K augmentations (view = epoch mod K), and the teacher's logits of each are
    computed once, kept in the cache (float16) and shared by all students, methods and seeds with the same
    `augment.seed`. 0: a fresh augmentation every epoch, as in the paper."""
    unseen: float = Field(0.0, ge=0, lt=1)
    """Share of the classes that a teacher trained here never sees: an imperfect teacher."""

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str | None) -> str | None:
        return arch if arch is None else ARCHITECTURES.check(arch)

    @field_validator("norm")
    @classmethod
    def _is_norm(cls, norm: str) -> str:
        parse_norm(norm)
        return norm

    @model_validator(mode="after")
    def _something_to_learn_from(self) -> TeacherSection:
        if self.file is None and self.arch is None:
            raise ValueError("needs a file or an arch")
        if self.file is None and self.norm != "auto":
            raise ValueError("norm is for a teacher's file; one trained here takes the data set's own")
        if self.file is not None and self.unseen:
            raise ValueError("unseen is for a teacher that is trained here: a file has seen what it has seen")
        if self.pretrained and (self.file is not None or not str(self.arch).startswith(TORCHVISION)):
            raise ValueError("pretrained is for a torchvision architecture that is trained here: torchvision:NAME")
        return self


class WarmStartSection(Section):
    """Training of every student on the labels alone, before any method starts (the paper's A.3)."""

    epochs: int = Field(200, ge=0, le=MAX_EPOCHS)
    """Epochs; 0 starts the students from random weights."""
    lr: float = Field(0.1, gt=0)
    """Learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay."""


class OptimizerSection(Section):
    """The students' SGD in the stages of the method (the paper's A.3)."""

    lr: float = Field(0.05, gt=0)
    """Learning rate."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay."""
    nesterov: bool = False
    """Nesterov's momentum."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerSection:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class ScheduleSection(Section):
    """Learning rate over the steps of a stage."""

    name: Literal["cosine", "constant"] = "cosine"
    """Cosine to 0 over the steps of a stage, or constant."""


class AugmentSection(Section):
    """Training augmentation."""

    preset: Literal["none", "digits", "cifar", "tiny", "strong"] = "cifar"
    """`digits`: crops; `cifar`: crops, flips, mild colour changes; `tiny`: RandomResizedCrop, flips, mild colour
    changes; `strong`: crops, flips, rotation, shear, strong colour changes and Cutout."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the augmentation. Unset: the run's own seed."""


Weight = Annotated[float, Field(ge=0)]


class DistillSection(Section):
    """Temperature; λ of Eq. 1 (used by kd, takd, dgkd and rmc); options of single methods."""

    tau: float = Field(2.0, gt=0)
    """Temperature τ of every KL term."""
    lambda_: float = Field(0.5, ge=0, le=1, alias="lambda")
    """The teacher's share of the loss, λ. Methods that have no λ ignore it."""
    total: float = Field(1.0, gt=0)
    """Total loss weight; kd's is 1."""
    drop: float = Field(0.0, ge=0, le=1)
    """Chance that a larger student is left out as a teacher in a step (the teacher itself never is)."""
    normalise: bool = False
    """Divide by the number of teachers, so that the total weight is kd's."""
    alpha: float = Field(0.3, ge=0, le=1)
    """Smallest factor on the teacher's logits."""
    clip: bool = False
    """Cut the difficulty at its 99th percentile before it is scaled."""
    constants: Annotated[tuple[Weight, Weight, Weight], Field(strict=False)] = (0.5, 0.5, 0.5)
    """The weights (α, β, γ) of the label, the teacher and the pooled students."""

    model_config = ConfigDict(**Section.model_config, populate_by_name=True, serialize_by_alias=True)


class CoordinatorSection(Section):
    """C-NET: its network, its optimiser and when it learns (the paper's §3.4, Algorithm 1)."""

    arch: str = "resnet32"
    """C-NET's network: `losses` (it sees each image's losses), `scalar` (learned numbers, no network), or an
    architecture, which sees the image."""
    scale: float = Field(1.0, gt=0)
    """Largest weight: w = scale · sigmoid."""
    normalise: Literal["none", "mean", "image"] = "none"
    """`image`: each image's weights sum to `total`; `mean`: they do so on average over the batch; `none`: they are
    free, as in the paper."""
    total: float | None = Field(None, gt=0)
    """What the weights of an image sum to. Unset: the number of losses for `image`, half of it for `mean`, times
    `scale`."""
    control: Literal["none", "mean", "shuffle", "frozen"] = "none"
    """Take C-NET's knowledge of single images away: `mean` over the batch, `shuffle` over the batch, or `frozen`
    (never trained)."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """`adam` is the paper's literal one."""
    lr: float = Field(1e-3, gt=0)
    """C-NET's learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """C-NET's weight decay."""
    every: int = Field(20, ge=1)
    """C-NET is updated every so many steps (or epochs)."""
    unit: Literal["step", "epoch"] = "step"
    """Unit of `every`. `epoch`: at every step of each such epoch."""
    shared: bool = True
    """One C-NET for all students; `false`: one for each."""

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        return arch if arch in (SCALAR, LOSSES) else ARCHITECTURES.check(arch)

    @model_validator(mode="after")
    def _total_needs_normalise(self) -> CoordinatorSection:
        if self.total is not None and self.normalise == "none":
            raise ValueError('total is used only with normalise = "mean" or "image"')
        return self


class CheckpointSection(Section):
    """When to save, apart from the end of each epoch."""

    every: str | None = None
    """Also save after so many steps or so much time: `20steps`, `2min`."""

    @field_validator("every")
    @classmethod
    def _is_interval(cls, every: str | None) -> str | None:
        if every is not None:
            interval(every)
        return every


class Recipe(Section):
    """One run: running the same recipe again gives the same ladder."""

    dataset: str = "digits"
    """A built-in name (`digits`, `cifar10`, `cifar100`, `tinyimagenet`) or an image folder."""
    data_root: str | None = None
    """Where a built-in data set's files are. Unset: they are downloaded into the cache."""
    image_size: int | None = Field(None, ge=8, le=1024)
    """Side of the images in pixels. Unset: the data set's own."""
    batch_size: int = Field(400, ge=2)
    """Images in a step, over all processes."""
    epochs: int = Field(500, ge=1, le=MAX_EPOCHS)
    """Epochs of the distillation alone."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of weights, batch order and augmentation."""
    split_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the split into train, val and test, and of label noise."""
    method: str = "mc-distil"
    """One of [the methods](methods.md)."""
    train_on_val: bool = False
    """The method's own stages also train on val (constant weights only)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 only where the processor has it natively."""
    deterministic: bool = True
    """The same bits every time; `false` lets cuDNN choose its kernels by timing them."""
    sync_bn: bool = False
    """Under torchrun: BatchNorm over the whole batch instead of each process's shard."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Share of the training labels replaced by another class; val and test stay clean."""
    students: dict[str, str] = Field(default_factory=lambda: dict(PAPER_STUDENTS), min_length=1)
    """A list such as `["resnet10-s", "small=resnet10-xxs"]`, or a table name → architecture."""
    teacher: TeacherSection = TeacherSection(arch="resnet10-l")
    warm_start: WarmStartSection = WarmStartSection()
    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    augment: AugmentSection = AugmentSection()
    distill: DistillSection = DistillSection()
    coordinator: CoordinatorSection = CoordinatorSection()
    checkpoint: CheckpointSection = CheckpointSection()

    @field_validator("method")
    @classmethod
    def _known_method(cls, method: str) -> str:
        return METHODS.check(method)

    @field_validator("students", mode="before")
    @classmethod
    def _named(cls, students: Any) -> Any:
        return name_students(students) if isinstance(students, list) else students

    @field_validator("students")
    @classmethod
    def _known_students(cls, students: dict[str, str]) -> dict[str, str]:
        for name, arch in students.items():
            if not STUDENT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no student name ([a-z0-9_-]+); write NAME={arch}")
            if name == "teacher":
                raise ValueError("'teacher' is the teacher's own name; give the student another")
            ARCHITECTURES.check(arch)
        return students

    @model_validator(mode="after")
    def _not_sharing_needs_two(self) -> Recipe:
        if not self.coordinator.shared and len(self.students) == 1:
            raise UserError("recipe key coordinator.shared: one student shares its C-NET with nobody; leave it true")
        return self

    @model_validator(mode="after")
    def _options_are_the_methods(self) -> Recipe:
        for key, methods in OPTIONS.items():
            given = getattr(self.distill, key) != DistillSection.model_fields[key].default
            if given and self.method not in methods:
                raise UserError(
                    f"recipe key distill.{key} is an option of {' and '.join(methods)}; {self.method} does not take it"
                )
        return self

    @property
    def augment_seed(self) -> int:
        return self.seed if self.augment.seed is None else self.augment.seed

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump(exclude_none=True))

    def content(self) -> dict[str, Any]:
        """What decides the result, as plain JSON: without paths and checkpoint intervals."""
        return self.model_dump(mode="json", exclude={"data_root": True, "checkpoint": True, "teacher": {"file"}})

    def sha256(self) -> str:
        """Hash of what decides the result."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()


def name_students(items: Iterable[Any]) -> dict[str, str]:
    """`["resnet10-s", "big=resnet10-m"]` → name → architecture; a name used twice is an error."""
    students: dict[str, str] = {}
    for item in items:
        name, equals, arch = (part.strip() for part in item.partition("=")) if isinstance(item, str) else ("",) * 3
        if not name or (equals and not arch):
            raise UserError(f"a student is written ARCH or NAME=ARCH, as in resnet10-s,big=resnet10-m; got {item!r}")
        if name in students:
            raise UserError(f"student {name!r} stands twice; give each a name of its own: NAME={arch or name}")
        students[name] = arch or name
    return students


def load_recipe(name: str | None, overrides: Mapping[str, Any], *, dataset: Any = None) -> Recipe:
    """The resolved recipe: defaults < the recipe (and what it extends) < overrides (dotted keys).

    Without a name, the recipe named after the data set (`folder` for an image folder). Raises UserError with the
    nearest name or key.
    """
    if name is None:
        wanted = "digits" if dataset is None else dataset
        name = wanted if wanted in list(DATASETS) else "folder"
    return parse_recipe(_merged(_read(name), overrides))


def parse_recipe(content: Mapping[str, Any]) -> Recipe:
    """A plain nested mapping → Recipe; the first thing wrong with it is told in one line."""
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise UserError(_first_problem(error)) from None


def lay_over(base: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The base with some keys changed (nested or dotted)."""
    return parse_recipe(_merged(base.model_dump(exclude_none=True), changes))


def read_changes(path: Path) -> dict[str, Any]:
    """What a recipe file holds, and what it extends, as it stands: only what it changes."""
    return _read(str(path))


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipes_folder().glob("*.toml"))


def parse_setting(text: str) -> tuple[str, Any]:
    """`key=value` of --set: a TOML value; a bare word is a string."""
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise UserError(f"--set takes key=value, for example coordinator.every=5; got {text!r}")
    try:
        parsed = _toml(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()
    except (ValueError, RecursionError):  # an integer of thousands of digits, brackets without end
        raise UserError(f"--set {key.strip()}: {value[:80]!r}... is no value; write it shorter") from None
    if parsed.keys() != {"value"}:
        raise UserError(f"--set takes one key=value at a time; got {text!r}")
    return key.strip(), parsed["value"]


def _toml(text: str) -> dict[str, Any]:
    """Raises ValueError (TOMLDecodeError is one) or RecursionError."""
    if any(line.count(".") > MAX_DOTS for line in text.splitlines()):
        raise ValueError(f"a line with more than {MAX_DOTS} dots")  # tomllib takes minutes for a key of 20,000 parts
    return tomllib.loads(text)


def _read(name: str, seen: tuple[str, ...] = ()) -> dict[str, Any]:
    path = _find(name)
    own = os.path.realpath(path)
    if own in seen:
        raise UserError(f"recipe {name!r} extends itself: {' -> '.join((*seen, own))}")
    if len(seen) > MAX_BASES:
        raise UserError(f"recipe {path} is more than {MAX_BASES} recipes below the first; extend fewer")
    try:
        content = _toml(read_small(path, MAX_BYTES).decode())
    except (OSError, ValueError, RecursionError) as error:  # no TOML, no UTF-8, integers of thousands of digits
        raise UserError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from None
    base = content.pop("extends", None)
    if base is None:
        return content
    if not isinstance(base, str):
        raise UserError(f"recipe {path}: extends takes one recipe's name, got {base!r}")
    beside = path.parent / as_path(f"{base}.toml")
    return _merged(_read(str(beside) if beside.is_file() else base, (*seen, own)), content)


def _find(name: str) -> Path:
    if name.endswith(".toml") or "/" in name:
        path = as_path(name)
        if not path.is_file():
            raise UserError(f"no recipe file {name}")
        return path
    path = recipes_folder() / f"{name}.toml"
    if not path.is_file():
        raise unknown("recipe", name, recipe_names())
    return path


def recipes_folder() -> Path:
    """Inside the package when installed from a wheel, beside it in a checkout or an editable install."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """base with changes laid over it; dotted keys reach into tables. `students` is replaced, not merged."""
    merged = dict(base)
    for dotted, value in changes.items():
        key, dot, rest = dotted.partition(".")
        if dotted.count(".") > MAX_DEPTH:
            raise UserError(f"recipe key {dotted[:80]!r}... does not exist: it has {dotted.count('.') + 1:,} parts")
        if dot:
            inner = merged.get(key, {})
            if not isinstance(inner, Mapping):
                raise UserError(f"recipe key {key!r} is a value, not a table; {dotted!r} does not exist")
            merged[key] = _merged(inner, {rest: value})
        elif isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key != "students":
            merged[key] = _merged(merged[key], value)
        else:
            merged[key] = value
    return merged


def _first_problem(error: ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path) or "recipe"
    if problem["type"] == "extra_forbidden":
        owner = _section(path[:-1])
        fields = [info.alias or key for key, info in owner.model_fields.items()]
        prefix = "".join(f"{part}." for part in path[:-1])
        return str(unknown("recipe key", dotted, [prefix + field for field in fields]))
    is_table = problem["type"] in ("model_type", "dict_type")
    message = "this is a table" if is_table else problem["msg"].removeprefix("Value error, ")
    value = problem["input"]
    shown = "" if isinstance(value, BaseModel | dict) else f", got {value!r}"
    return f"recipe key {dotted}: {message[0].lower() + message[1:]}{shown}"


def _section(path: list[str]) -> type[BaseModel]:
    owner: type[BaseModel] = Recipe
    for part in path:
        annotation = owner.model_fields[part].annotation
        candidates = [annotation, *get_args(annotation)]
        owner = next(c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel))
    return owner

"""The keys of a recipe: every setting that decides a run's result, typed and frozen. No torch here."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from mcd_cli.errors import UserError, unknown
from mcd_cli.methods import METHODS, takers
from mcd_cli.methods.settings import ACCEPTED_BY_ALL, DistillSection
from mcd_cli.models import ARCHITECTURES, COORDINATORS, library_of
from mcd_cli.norms import parse_norm
from mcd_cli.quantities import interval

STUDENT_NAME = re.compile(r"[a-z0-9_-]{1,100}")  # used as a file name
PAPER_STUDENTS = {f"resnet10-{size}": f"resnet10-{size}" for size in ("m", "s", "xs", "xxs", "xxxs")}

ADDED = {"": ("student",), "augment": ("mixup", "cutmix"), "distill": ("losses",), "ema": ("decay",)}
"""Keys that are younger than version 0.1.0, by table ("": the top level).

Such a key is left out of `Recipe.content` while it has its default, and so is a table without other keys. So a recipe
that does not use it keeps its hash, and runs from before the key can be resumed. Therefore its default means what the
program did without it, and never changes.
"""

MAX_EPOCHS = 1_000_000
MAX_SEED = 2**63 - 1  # every TOML and JSON reader can hold it


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class TeacherSection(Section):
    """The frozen teacher: a weights file, or an architecture that mcd trains first."""

    file: str | None = Field(None, min_length=1)
    """A weights file."""
    arch: str | None = None
    """An architecture to train first (cached for later runs); with `file`: the architecture of that file."""
    norm: str = "auto"
    """Input normalisation of a teacher file: `auto`, `cifar10`, `cifar100`, `imagenet`, `half`, `none` or
    `R,G,B/R,G,B`."""
    pretrained: bool = False
    """Start a teacher of torchvision, timm or the Hub from its published weights."""
    epochs: int = Field(200, ge=1, le=MAX_EPOCHS)
    """Epochs for training a teacher."""
    lr: float = Field(0.1, gt=0)
    """Learning rate for training a teacher."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum for training a teacher."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay for training a teacher."""
    views: int = Field(0, ge=0, le=10_000)
    """Number K of augmented views per image (view = epoch mod K). The teacher's logits for each view are computed
    once, cached (float16) and shared by all students, methods and seeds with the same `augment.seed`. 0: a fresh
    augmentation every epoch, as in the paper."""
    unseen: float = Field(0.0, ge=0, lt=1)
    """Share of the classes that a teacher trained by mcd never sees, to simulate an imperfect teacher."""

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
            raise ValueError("set a file or an arch")
        if self.file is None and self.norm != "auto":
            raise ValueError("norm applies only to a teacher file; remove it, or set teacher.file")
        if self.file is not None and self.unseen:
            raise ValueError("unseen applies only to a teacher that mcd trains; remove it, or set only teacher.arch")
        if self.pretrained and (self.file is not None or library_of(str(self.arch)) is None):
            raise ValueError(
                "pretrained applies only to a teacher of a library that mcd trains; "
                "use arch torchvision:NAME, timm:NAME or hf-hub:USER/REPO"
            )
        return self


class WarmStartSection(Section):
    """Training of every student with the labels only, before the method starts (the paper's A.3)."""

    epochs: int = Field(200, ge=0, le=MAX_EPOCHS)
    """Epochs; with 0 the students start from random weights."""
    lr: float = Field(0.1, gt=0)
    """Learning rate."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """Weight decay."""


class OptimizerSection(Section):
    """The students' SGD during distillation (the paper's A.3)."""

    lr: float = Field(0.05, gt=0)
    """Learning rate."""
    momentum: float = Field(0.95, ge=0, lt=1)
    """Momentum."""
    weight_decay: float = Field(1e-4, ge=0)
    """Weight decay."""
    nesterov: bool = False
    """Nesterov momentum."""

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> OptimizerSection:
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs momentum; set momentum above 0")
        return self


class StudentSection(Section):
    """One student's own settings during distillation."""

    lr: float | None = Field(None, gt=0)
    """Its learning rate. Unset: `optimizer.lr`."""
    weight_decay: float | None = Field(None, ge=0)
    """Its weight decay. Unset: `optimizer.weight_decay`."""
    total: float | None = Field(None, gt=0)
    """Factor on its whole loss, for every method. Unset: `distill.total`."""


class ScheduleSection(Section):
    """Learning-rate schedule of a stage."""

    name: Literal["cosine", "constant"] = "cosine"
    """`cosine`: decays to 0 over the steps of a stage; `constant`: no decay."""


class EMASection(Section):
    """An exponential moving average of each student's weights during distillation."""

    decay: float = Field(0.0, ge=0, lt=1)
    """Decay of the [average](methods.md#averaged-weights), such as 0.999. 0: no average."""


class AugmentSection(Section):
    """Training augmentation."""

    preset: Literal["none", "digits", "cifar", "tiny", "strong"] = "cifar"
    """`digits`: crops; `cifar`: crops, flips, mild colour changes; `tiny`: RandomResizedCrop, flips, mild colour
    changes; `strong`: crops, flips, rotation, shear, strong colour changes and Cutout."""
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    """Seed of the augmentation. Unset: the run's seed."""
    mixup: float = Field(0.0, ge=0, le=1000)
    """α of [mixup](methods.md#mixed-images) during distillation, such as 0.2. 0: no mixup."""
    cutmix: float = Field(0.0, ge=0, le=1000)
    """α of [CutMix](methods.md#mixed-images) during distillation, such as 1. 0: no CutMix."""


class CoordinatorSection(Section):
    """C-NET, the coordinator: its network, its optimiser and its update interval (the paper's §3.4, Algorithm 1)."""

    arch: str = "resnet32"
    """C-NET's network: an architecture, whose input is the image; `losses`, a small network whose input is the
    image's losses; or `scalar`, learned numbers without a network."""
    scale: float = Field(1.0, gt=0)
    """Upper limit of a loss weight: w = scale · sigmoid."""
    normalise: Literal["none", "mean", "image"] = "none"
    """`image`: each image's loss weights sum to `total`; `mean`: they sum to `total` on average over the batch;
    `none`: no normalisation, as in the paper."""
    total: float | None = Field(None, gt=0)
    """Sum of an image's loss weights. Unset: `scale` times the number of losses for `image`, half of that for
    `mean`."""
    control: Literal["none", "mean", "shuffle", "frozen"] = "none"
    """Controls that remove what C-NET knows about single images: `mean` averages the weights over the batch,
    `shuffle` permutes them over the batch, `frozen` never trains C-NET."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """C-NET's optimiser. The paper says `adam`."""
    lr: float = Field(1e-3, gt=0)
    """C-NET's learning rate."""
    weight_decay: float = Field(1e-4, ge=0)
    """C-NET's weight decay."""
    every: int = Field(20, ge=1)
    """Interval between two updates of C-NET, in steps or epochs."""
    unit: Literal["step", "epoch"] = "step"
    """Unit of `every`. `epoch`: C-NET is updated at each step of every such epoch."""
    shared: bool = True
    """One C-NET for all students; `false`: one for each student."""

    @field_validator("arch")
    @classmethod
    def _known(cls, arch: str) -> str:
        return arch if arch in COORDINATORS else ARCHITECTURES.check(arch)

    @model_validator(mode="after")
    def _total_needs_normalise(self) -> CoordinatorSection:
        if self.total is not None and self.normalise == "none":
            raise ValueError('total applies only with normalise = "mean" or "image"; set one of them')
        return self


class CheckpointSection(Section):
    """When to save a checkpoint, in addition to the end of each epoch."""

    every: str | None = None
    """Also save at this interval: `20steps`, `2min`."""

    @field_validator("every")
    @classmethod
    def _is_interval(cls, every: str | None) -> str | None:
        if every is not None:
            interval(every)
        return every


class Recipe(Section):
    """All settings of one run; running the same recipe again gives the same ladder."""

    dataset: str = "digits"
    """A built-in data set (`numbers`, `digits`, `cifar10`, `cifar100`, `tinyimagenet`) or an image folder."""
    data_root: str | None = None
    """Folder with a built-in data set's files. Unset: they are downloaded into the cache."""
    image_size: int | None = Field(None, ge=8, le=1024)
    """Side length of the images in pixels. Unset: the data set's own."""
    batch_size: int = Field(400, ge=2)
    """Images per step, summed over all processes."""
    epochs: int = Field(500, ge=1, le=MAX_EPOCHS)
    """Epochs of distillation, after teacher training and warm start."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for weights, batch order and augmentation."""
    split_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed for the split into train, val and test, and for label noise."""
    method: str = "mc-distil"
    """One of [the methods](methods.md)."""
    train_on_val: bool = False
    """Distil on train and val together (only methods with constant loss weights)."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 if the processor supports it natively, else fp32."""
    deterministic: bool = True
    """Bit-reproducible results; `false` lets cuDNN benchmark its kernels, which can be faster."""
    sync_bn: bool = False
    """With torchrun: BatchNorm statistics over the whole batch instead of each process's shard."""
    label_noise: float = Field(0.0, ge=0, lt=1)
    """Share of the training labels replaced by another class; val and test keep their labels."""
    students: dict[str, str] = Field(default_factory=lambda: dict(PAPER_STUDENTS), min_length=1)
    """A list such as `["resnet10-s", "small=resnet10-xxs"]`, or a table that maps names to architectures."""
    teacher: TeacherSection = TeacherSection(arch="resnet10-l")
    warm_start: WarmStartSection = WarmStartSection()
    optimizer: OptimizerSection = OptimizerSection()
    student: dict[str, StudentSection] = Field(default_factory=dict)
    schedule: ScheduleSection = ScheduleSection()
    ema: EMASection = EMASection()
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
        if isinstance(students, dict) and any(isinstance(arch, dict) for arch in students.values()):
            raise ValueError("a student is written NAME = ARCH; its own settings go into the table student.NAME")
        return name_students(students) if isinstance(students, list) else students

    @field_validator("students")
    @classmethod
    def _known_students(cls, students: dict[str, str]) -> dict[str, str]:
        for name, arch in students.items():
            if not STUDENT_NAME.fullmatch(name):
                raise ValueError(f"{name!r} is not a valid student name ([a-z0-9_-]+); write NAME={arch}")
            if name == "teacher":
                raise ValueError("the name 'teacher' is reserved for the teacher; rename the student")
            ARCHITECTURES.check(arch)
        return students

    @model_validator(mode="after")
    def _mixed_images_have_no_views(self) -> Recipe:
        if (self.augment.mixup or self.augment.cutmix) and self.teacher.views:
            key = "mixup" if self.augment.mixup else "cutmix"
            raise UserError(
                f"recipe key augment.{key}: images mixed anew in every step have no stored logits of the teacher; "
                "set teacher.views = 0"
            )
        return self

    @model_validator(mode="after")
    def _settings_have_a_student(self) -> Recipe:
        for name in self.student:
            if name not in self.students:
                raise unknown("recipe key", f"student.{name}", [f"student.{known}" for known in self.students])
        return self

    @model_validator(mode="after")
    def _not_sharing_needs_two(self) -> Recipe:
        if not self.coordinator.shared and len(self.students) == 1:
            raise UserError("recipe key coordinator.shared: false needs two students or more; leave it true")
        return self

    @model_validator(mode="after")
    def _method_can_train_them(self) -> Recipe:
        spec = METHODS[self.method]
        if spec.needs_two and len(self.students) == 1:
            raise UserError(f"{self.method} needs two students or more: {spec.needs_two}; use --method {spec.alone}")
        return self

    @model_validator(mode="after")
    def _options_are_the_methods(self) -> Recipe:
        default = DistillSection().model_dump()
        for key, value in self.distill.model_dump().items():
            if value != default[key] and key not in (*ACCEPTED_BY_ALL, *METHODS[self.method].settings):
                owners = " and ".join(takers(key))
                raise UserError(f"recipe key distill.{key} is an option of {owners}, not of {self.method}; remove it")
        return self

    @property
    def augment_seed(self) -> int:
        """The seed of the augmentation: `augment.seed`, or the run's seed if that is unset."""
        return self.seed if self.augment.seed is None else self.augment.seed

    def to_toml(self) -> str:
        content = self.model_dump(exclude_none=True)
        if not self.student:
            del content["student"]  # no empty table
        return tomli_w.dumps(content)

    def content(self) -> dict[str, Any]:
        """The keys that decide the result, as plain JSON: all but paths, checkpoint intervals, and unused `ADDED`."""
        content = self.model_dump(mode="json", exclude={"data_root": True, "checkpoint": True, "teacher": {"file"}})
        for table, keys in ADDED.items():
            section, plain = (getattr(self, table), content[table]) if table else (self, content)
            for key in keys:
                if getattr(section, key) == type(section).model_fields[key].get_default(call_default_factory=True):
                    del plain[key]
            if not plain:
                del content[table]
        return content

    def sha256(self) -> str:
        """Hash of the keys that decide the result, as 64 hex digits."""
        return hashlib.sha256(json.dumps(self.content(), sort_keys=True).encode()).hexdigest()


def name_students(items: Iterable[Any]) -> dict[str, str]:
    """`["resnet10-s", "big=resnet10-m"]` → {name: architecture}. Raises UserError, also for a duplicate name.

    A network of another library without a NAME is named after it: `timm:convnext_atto.d2_in1k`, convnext_atto-d2_in1k.
    """
    students: dict[str, str] = {}
    for item in items:
        name, equals, arch = (part.strip() for part in item.partition("=")) if isinstance(item, str) else ("",) * 3
        if not name or (equals and not arch):
            raise UserError(f"a student is written ARCH or NAME=ARCH, as in resnet10-s,big=resnet10-m; got {item!r}")
        arch = arch or name
        if not equals:
            name = re.sub("[^a-z0-9_-]", "-", name.removeprefix(library_of(name) or "").lower())
        if name in students:
            raise UserError(f"duplicate student name {name!r}; give one of them a new name: NAME={arch}")
        students[name] = arch
    return students

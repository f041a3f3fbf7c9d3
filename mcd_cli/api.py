"""The commands as Python functions: their keywords are the flags' names, errors are exceptions (`McdError`).

    import mcd_cli

    ladder = mcd_cli.distill(dataset="digits", epochs=5, students=["resnet10-s", "resnet10-xs"])
    mcd_cli.export(ladder)
    ladder.select(max_macs="1M").load()

Where a flag takes values separated by commas, pass a list; where it takes a path, text or a Path; for --set, a
dictionary: `settings={"coordinator.every": 2}`. To use your own network or data set without a file, see
`register_architecture` and `register_dataset`; `teacher` also accepts a module.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mcd_cli.cli.options import CompareOptions, DistillOptions
from mcd_cli.data import DATASETS, DatasetSpec
from mcd_cli.errors import UserError
from mcd_cli.models import ARCHITECTURES
from mcd_cli.registry import Row

if TYPE_CHECKING:
    from torch import nn

    from mcd_cli.comparison.schema import Document
    from mcd_cli.ladder.manifest import Ladder

REPEATABLE = ("settings", "overlays", "beside")  # options that are lists on the command line, too

P = ParamSpec("P")
T = TypeVar("T")


def _with_keywords_of(options: Callable[P, Any]) -> Callable[[Callable[[Any], T]], Callable[P, T]]:
    """Gives a function of a dataclass of options that dataclass's keywords."""

    def decorate(run: Callable[[Any], T]) -> Callable[P, T]:
        @functools.wraps(run)
        def call(*args: P.args, **keywords: P.kwargs) -> T:
            return run(options(*args, **_as_flags(keywords)))  # type: ignore[arg-type]

        call.__signature__ = inspect.signature(options)  # type: ignore[attr-defined]
        return call

    return decorate


@_with_keywords_of(DistillOptions)
def distill(options: DistillOptions) -> Ladder:
    """Train a ladder of students from one teacher, as `mcd distill` does; returns the ladder.

    teacher may also be a trained torch module. on_event: called with each event (`mcd_cli.engine.events`), such as
    `EpochEnded`. Raises McdError; a KeyboardInterrupt becomes Interrupted, and `distill(resume=DIR)` continues.

        ladder = mcd_cli.distill(teacher="r34.pt", dataset="./photos", students="resnet10-s,resnet10-xs", epochs=60)
        [(student.name, student.accuracy.test) for student in ladder.students]
    """
    from mcd_cli.cli.distill import train

    if options.dry_run:
        raise UserError("dry_run is for the command line: mcd distill --dry-run")
    ladder = train(options)
    if ladder is None:
        raise UserError("under torchrun, only the process of rank 0 has the ladder; use mcd distill")
    return ladder


@_with_keywords_of(CompareOptions)
def compare(options: CompareOptions) -> Document:
    """Compare methods over several seeds, as `mcd compare` does; returns what comparison.json holds.

    document = mcd_cli.compare(methods=["kd", "mc-distil"], seeds=[0, 1, 2], out="runs/comparison")
    [(row.name, row.mean.mean, row.vs_kd) for row in document.contenders]
    """
    from mcd_cli.cli.compare import run

    if options.dry_run or options.nodes or options.only:
        raise UserError("dry_run, nodes and only are for the command line: mcd compare")
    result = run(options)
    if result is None:
        raise UserError("the jobs are queued; load the result when they are finished: compare(resume=DIR)")
    documents, _ = result
    if "" not in documents:
        raise UserError("compare takes one recipe; call it for each")
    return documents[""]


def export(
    run: str | os.PathLike[str] | Ladder | None = None,
    *,
    format: str = "onnx",
    students: Sequence[str] | None = None,
    out: str | os.PathLike[str] | None = None,
    int8: bool = False,
    max_drop: float = 1.0,
    preprocess: bool = True,
    calibrated: bool = False,
    data_root: str | None = None,
    force: bool = False,
) -> list[Path]:
    """Write students as checked ONNX files, as `mcd export` does; returns the files.

    run: a run's folder or its ladder; None for the newest under ./runs. max_drop: accuracy on val that int8 may lose,
    in points. Raises GateRefused if a file does not compute what its model does.

        mcd_cli.export("runs/numbers-mc-distil-1", int8=True)
    """
    from mcd_cli.cli.export import export as write
    from mcd_cli.ladder.manifest import Ladder

    records = write(
        None if run is None else str(run.folder if isinstance(run, Ladder) else run),
        format=format,
        students=None if students is None else list(students),
        out=None if out is None else str(out),
        int8=int8,
        max_drop=max_drop,
        preprocess=preprocess,
        calibrated=calibrated,
        data_root=data_root,
        force=force,
        show=lambda path: None,
    )
    return [Path(record["path"]) for record in records]


def register_architecture(name: str, factory: Callable[[int], nn.Module]) -> None:
    """Make a network of your own known as `name`, for students and teachers. Do it again before resuming a run.

    factory: number of classes → a module, images [n, 3, H, W] → logits [n, classes]. Raises ValueError if the name is
    taken.

        mcd_cli.register_architecture("mine", lambda classes: MyNetwork(classes))
        mcd_cli.distill(students=["mine", "resnet10-s"])
    """
    ARCHITECTURES.register(name, Row(factory))


def register_dataset(name: str, train: Any, *, val: Any = None, test: Any = None, classes: Sequence[str]) -> None:
    """Make a data set of your own known as `name`. Do it again before resuming a run.

    train, val, test: torch Datasets, or sequences, of (image, label); without val or test, they are cut from train. An
    image is a PIL image, uint8 [H, W, 3], or a tensor [3, H, W] in [0, 1] or in 8 bits; a label is an index into
    classes. Random augmentation belongs into the recipe (`augment.preset`), not into these. Raises ValueError if the
    name is taken.

        mcd_cli.register_dataset("mine", MyDataset(), classes=["cat", "dog"])
        mcd_cli.distill(dataset="mine", image_size=32)
    """
    from mcd_cli.data.own import Own

    DATASETS.register(name, DatasetSpec(Own(classes, train, val, test), f"yours, of {len(classes)} classes"))


def _as_flags(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords' values as the command line would have them."""
    flags = dict(keywords)
    if hasattr(flags.get("teacher"), "state_dict"):
        flags |= _teacher(flags["teacher"])
    for name, value in flags.items():
        if name == "settings" and isinstance(value, Mapping):
            flags[name] = [f"{key}={setting}" for key, setting in value.items()]
        elif name == "students" and isinstance(value, Mapping):
            flags[name] = ",".join(f"{student}={arch}" for student, arch in value.items())
        elif name not in REPEATABLE and isinstance(value, Iterable) and not isinstance(value, str):
            flags[name] = ",".join(map(str, value))
        elif isinstance(value, os.PathLike):
            flags[name] = os.fspath(value)
    return flags


def _teacher(module: nn.Module) -> dict[str, str]:
    """The module's weights as a file in the cache, and its architecture under a name."""
    import hashlib

    import safetensors.torch

    from mcd_cli.data.cache import cache_folder
    from mcd_cli.files import write_whole

    state = {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items()}
    content = safetensors.torch.save(state)
    name = f"module-{hashlib.sha256(content).hexdigest()[:16]}"
    file = cache_folder("modules") / f"{name}.safetensors"
    write_whole(file, content)
    if name not in ARCHITECTURES:
        ARCHITECTURES.register(name, Row(functools.partial(_with_classes, module)))
    return {"teacher": str(file), "teacher_arch": name}


def _with_classes(module: nn.Module, classes: int) -> nn.Module:
    """A copy whose head, its last linear layer, has this many outputs: the reader of weights files varies them."""
    from torch import nn

    network = copy.deepcopy(module).cpu()
    name, head = [(name, layer) for name, layer in network.named_modules() if isinstance(layer, nn.Linear)][-1]
    if head.out_features != classes:
        network.set_submodule(name, nn.Linear(head.in_features, classes, bias=head.bias is not None))
    return network

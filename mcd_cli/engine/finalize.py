"""Finishes a run: evaluates on test, writes the students, and writes the manifest last."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

from scipy.special import bdtr
from torch import Tensor, nn

import mcd_cli
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.loader import Loader
from mcd_cli.engine.checkpoint import serialise
from mcd_cli.engine.evaluation import each_logits, predictions
from mcd_cli.engine.events import InfoMessage, Listener
from mcd_cli.engine.hardware import Hardware
from mcd_cli.engine.results import Results, Weights
from mcd_cli.engine.teacher import Teacher, about
from mcd_cli.files import sha256_of, write_whole
from mcd_cli.ladder.calibration import calibrate
from mcd_cli.ladder.folder import PREDICTIONS, STUDENTS, RunFolder
from mcd_cli.ladder.manifest import Ladder
from mcd_cli.ladder.schema import Accuracy, Calibration, DatasetEntry, StudentEntry, TeacherAccuracy, TeacherEntry
from mcd_cli.methods.base import TEACHER
from mcd_cli.models import build
from mcd_cli.models.cost import profile
from mcd_cli.models.students import freeze
from mcd_cli.models.teacher_file import save_model
from mcd_cli.recipe.schema import Recipe


def gain_p(predicted: Mapping[str, Tensor], name: str) -> float:
    """Two-sided p-value of a student's gain over its warm start: exact McNemar test over the test images."""
    right = {kind: predicted[f"test/{kind}/{name}"] == predicted["test"] for kind in ("best", "ce")}
    gained, lost = (int((right[a] & ~right[b]).sum()) for a, b in (("best", "ce"), ("ce", "best")))
    return min(1.0, 2 * float(bdtr(min(gained, lost), gained + lost, 0.5)))


def splits(dataset: Dataset) -> dict[str, Tensor]:
    """The sample ids of train, val and test by name."""
    return {"train": dataset.train, "val": dataset.val, "test": dataset.test}


def write_ladder(
    recipe: Recipe,
    folder: RunFolder | None,
    loader: Loader,
    teacher: Teacher,
    results: Results,
    hardware: Hardware,
    emit: Listener,
) -> Ladder | None:
    """Evaluate on test (once, with all processes); write students/, the predictions and ladder.json.

    Each student's temperature is fitted on val, unless it was trained on val; test is only scored with it.
    folder: None in a process that does not write; the result is then None.
    """
    dataset = loader.dataset
    predicted: dict[str, Tensor] = {
        part: dataset.labels[ids] for part, ids in splits(dataset).items() if part != "train"
    }

    def right(part: str, kind: str, classes: Tensor) -> float:
        predicted[f"{part}/{kind}"] = classes
        return int((classes == predicted[part]).sum()) / len(classes)

    def accuracy(part: str, model: nn.Module, kind: str) -> float:
        return right(part, kind, predictions(model, loader, splits(dataset)[part]))

    def student(name: str, weights: Weights) -> nn.Module:
        network = build(recipe.students[name], dataset.num_classes)
        network.load_state_dict(weights)
        return freeze(network, dataset.mean, dataset.std).to(loader.device)

    distilled, warm = results.distilled(), results.warm_started()
    accuracies: dict[str, Accuracy] = {}
    calibrations: dict[str, Calibration | None] = {}
    for name in recipe.students:
        best = student(name, distilled.best[name])
        z = {part: each_logits(best, loader, splits(dataset)[part], lambda z: z) for part in ("val", "test")}
        accuracies[name] = Accuracy(
            ce=accuracy("test", student(name, warm[name]), f"ce/{name}") if name in warm else None,
            last=accuracy("test", student(name, distilled.last[name]), f"last/{name}"),
            val=right("val", f"best/{name}", z["val"].argmax(dim=-1)),
            test=right("test", f"best/{name}", z["test"].argmax(dim=-1)),
            gain_p=gain_p(predicted, name) if name in warm else None,
        )
        if folder is not None and not recipe.train_on_val:
            calibrations[name], remark = calibrate({p: (z[p].numpy(), predicted[p].numpy()) for p in z})
            if remark:
                emit(InfoMessage(f"{name}: {remark}"))
    teacher_accuracy = TeacherAccuracy(
        val=accuracy("val", teacher.network, TEACHER), test=accuracy("test", teacher.network, TEACHER)
    )
    if folder is None:
        return None

    (folder / STUDENTS).mkdir(exist_ok=True)
    entries = []
    for name, arch in recipe.students.items():
        path = folder / STUDENTS / f"{name}.safetensors"
        save_model(path, distilled.best[name], about(arch, dataset))
        cost = profile(build(arch, dataset.num_classes), dataset.input_shape)
        entries.append(
            StudentEntry(
                name=name,
                arch=arch,
                weights=f"{STUDENTS}/{path.name}",
                sha256=sha256_of(path),
                params=cost.params,
                macs=cost.macs,
                bytes=path.stat().st_size,
                accuracy=accuracies[name],
                calibration=calibrations.get(name),
            )
        )
    write_whole(folder / PREDICTIONS, serialise(predicted, {}))
    ladder = Ladder(
        version=mcd_cli.__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=DatasetEntry(
            name=dataset.name,
            classes=dataset.classes,
            input_shape=dataset.input_shape,
            mean=dataset.mean,
            std=dataset.std,
            split_seed=dataset.split_seed,
            fingerprint=dataset.fingerprint,
            sizes={part: len(ids) for part, ids in splits(dataset).items()},
        ),
        teacher=TeacherEntry(
            arch=teacher.arch,
            sha256=teacher.sha256,
            norm="/".join(",".join(f"{v:g}" for v in values) for values in (teacher.mean, teacher.std)),
            accuracy=teacher_accuracy,
            saw_val=None if teacher.was_given else False,
        ),
        method=recipe.method,
        recipe_sha256=recipe.sha256(),
        seed=recipe.seed,
        device=hardware.device.type,
        hardware=hardware.describe(),
        students=tuple(entries),
    )
    ladder.save(folder.path)
    return ladder.at(folder.path)

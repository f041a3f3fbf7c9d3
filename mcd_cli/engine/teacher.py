"""The frozen teacher of a run: read from a file or from the cache, or not trained yet."""

from __future__ import annotations

import glob
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mcd_cli.data.cache import cache_folder
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.splits import some_classes
from mcd_cli.engine.hardware import Hardware
from mcd_cli.files import as_path, sha256_of
from mcd_cli.models.normalized import Normalized
from mcd_cli.models.students import freeze
from mcd_cli.models.teacher_file import load_teacher, save_model
from mcd_cli.norms import RGB, parse_norm
from mcd_cli.recipe.schema import Recipe


@dataclass(frozen=True)
class Teacher:
    """A frozen teacher. network: images in [0, 1] → logits [n, C], including the teacher's own normalisation."""

    network: Normalized
    arch: str
    mean: RGB
    std: RGB
    path: Path
    sha256: str
    was_given: bool  # a file that was not trained on this train split, so the teacher may have seen val


def read_teacher(
    path: Path, arch: str | None, norm: str, dataset: Dataset, device: torch.device, *, was_given: bool
) -> Teacher:
    """Read a teacher file of any layout. norm: `auto` uses the file's normalisation, or else the data set's."""
    loaded = load_teacher(path, arch=arch, num_classes=dataset.num_classes)
    stated = (loaded.metadata.get("mean"), loaded.metadata.get("std"))
    mean, std = parse_norm(norm) or (stated if all(stated) else (dataset.mean, dataset.std))
    network = freeze(loaded.model, tuple(mean or ()), tuple(std or ())).to(device)
    was_given = was_given and loaded.metadata.get("trained_on") != trained_on(dataset)
    return Teacher(network, loaded.arch, tuple(mean or ()), tuple(std or ()), path, loaded.sha256, was_given)


def find_teacher(recipe: Recipe, dataset: Dataset, hardware: Hardware, sha256: str | None = None) -> Teacher | None:
    """The recipe's teacher if it is a file or is in the cache; None if the run must train it.

    sha256: hash of the trained teacher that a resumed run started with; it is used even if its settings differ.
    """
    section = recipe.teacher
    if section.file is not None:
        path = as_path(section.file)
        return read_teacher(path, section.arch, section.norm, dataset, hardware.device, was_given=True)
    path = trained_path(recipe, dataset, hardware)
    if sha256 is not None:
        cached = sorted(path.parent.glob(f"{glob.escape(str(section.arch))}-*.safetensors"))
        path = next((p for p in (path, *cached) if p.is_file() and sha256_of(p) == sha256), path)
    if not path.is_file():
        return None
    return read_teacher(path, section.arch, "auto", dataset, hardware.device, was_given=False)


def trained_path(recipe: Recipe, dataset: Dataset, hardware: Hardware) -> Path:
    """The cache path of the teacher that this recipe trains; it depends on everything that decides its weights."""
    content = {
        "teacher": recipe.teacher.model_dump(exclude={"file", "norm", "views"}),
        "batch_size": recipe.batch_size,
        "seed": recipe.seed,
        "split_seed": recipe.split_seed,
        "label_noise": recipe.label_noise,
        "augment": recipe.augment.preset,
        "augment_seed": recipe.augment_seed,
        "schedule": recipe.schedule.name,
        "fingerprint": dataset.fingerprint,
        "hardware": hardware.describe(),
        "sync_bn": recipe.sync_bn and hardware.processes.world > 1,
        "deterministic": recipe.deterministic,
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    return cache_folder("teachers") / f"{recipe.teacher.arch}-{key}.safetensors"


def seen_images(dataset: Dataset, unseen: float) -> Tensor:
    """Sample ids [n] of the training images, without the share `unseen` of the classes."""
    hidden = torch.from_numpy(some_classes(dataset.num_classes, unseen, dataset.split_seed))
    return dataset.train[~torch.isin(dataset.labels[dataset.train], hidden)]


def keep_trained(path: Path, weights: Mapping[str, Tensor], arch: str, dataset: Dataset) -> str:
    """Save a trained teacher in the cache and return the file's sha256."""
    save_model(path, weights, {**about(arch, dataset), "trained_on": trained_on(dataset)})
    return sha256_of(path)


def trained_on(dataset: Dataset) -> dict[str, object]:
    """The train split as recorded in a teacher's file; a teacher trained by mcd on this split has not seen val."""
    return {"fingerprint": dataset.fingerprint, "split_seed": dataset.split_seed}


def about(arch: str, dataset: Dataset) -> dict[str, object]:
    """The metadata of the weights files that mcd writes: what is needed to build the network and prepare its input."""
    return {
        "arch": arch,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        "mean": list(dataset.mean),
        "num_classes": dataset.num_classes,
        "std": list(dataset.std),
    }

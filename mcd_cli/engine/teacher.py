"""The frozen teacher of a run: read from a file, found in the cache, or still to be trained."""

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
    """network: images in [0, 1] → logits [n, C], frozen, with its own normalisation inside."""

    network: Normalized
    arch: str
    mean: RGB
    std: RGB
    path: Path
    sha256: str
    was_given: bool  # as a file that was not trained on this train split: it may have seen V


def read_teacher(
    path: Path, arch: str | None, norm: str, dataset: Dataset, device: torch.device, *, was_given: bool
) -> Teacher:
    """A teacher file of any layout; `auto` = the normalisation that the file states, else the data set's own."""
    loaded = load_teacher(path, arch=arch, num_classes=dataset.num_classes)
    stated = (loaded.metadata.get("mean"), loaded.metadata.get("std"))
    mean, std = parse_norm(norm) or (stated if all(stated) else (dataset.mean, dataset.std))
    network = freeze(loaded.model, tuple(mean or ()), tuple(std or ())).to(device)
    was_given = was_given and loaded.metadata.get("trained_on") != trained_on(dataset)
    return Teacher(network, loaded.arch, tuple(mean or ()), tuple(std or ()), path, loaded.sha256, was_given)


def find_teacher(recipe: Recipe, dataset: Dataset, hardware: Hardware, sha256: str | None = None) -> Teacher | None:
    """The recipe's teacher if it is a file or was trained before; None where the run has to train it.

    sha256: of the trained one that a run began with, wherever it was trained.
    """
    section = recipe.teacher
    if section.file is not None:
        path = as_path(section.file)
        return read_teacher(path, section.arch, section.norm, dataset, hardware.device, was_given=True)
    path = trained_path(recipe, dataset, hardware)
    if sha256 is not None:
        others = sorted(path.parent.glob(f"{glob.escape(str(section.arch))}-*.safetensors"))
        path = next((p for p in (path, *others) if p.is_file() and sha256_of(p) == sha256), path)
    if not path.is_file():
        return None
    return read_teacher(path, section.arch, "auto", dataset, hardware.device, was_given=False)


def trained_path(recipe: Recipe, dataset: Dataset, hardware: Hardware) -> Path:
    """Where the cache keeps the teacher that this recipe trains: a function of all that decides its weights."""
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
    """The training images, [n] sample ids, without those of the classes that a teacher shall not know."""
    hidden = torch.from_numpy(some_classes(dataset.num_classes, unseen, dataset.split_seed))
    return dataset.train[~torch.isin(dataset.labels[dataset.train], hidden)]


def keep_trained(path: Path, weights: Mapping[str, Tensor], arch: str, dataset: Dataset) -> str:
    """Save a trained teacher in the cache; returns the file's sha256."""
    save_model(path, weights, {**about(arch, dataset), "trained_on": trained_on(dataset)})
    return sha256_of(path)


def trained_on(dataset: Dataset) -> dict[str, object]:
    """The train split, as the teacher's file names it: one that this engine trained there has not seen V."""
    return {"fingerprint": dataset.fingerprint, "split_seed": dataset.split_seed}


def about(arch: str, dataset: Dataset) -> dict[str, object]:
    """The metadata of every weights file of ours: what is needed to build and feed the network."""
    return {
        "arch": arch,
        "classes": list(dataset.classes),
        "input_shape": list(dataset.input_shape),
        "mean": list(dataset.mean),
        "num_classes": dataset.num_classes,
        "std": list(dataset.std),
    }

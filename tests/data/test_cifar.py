"""CIFAR in each of its published forms, with fewer images than the official files."""

from __future__ import annotations

import pickle
import struct
import tarfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image

from mcd_cli.data import cifar
from mcd_cli.data.cifar import CIFAR10, CIFAR100, Cifar, Layout
from mcd_cli.data.cifar_pickle import load_pickle
from mcd_cli.data.dataset import Decoded, Request
from mcd_cli.data.splits import Part
from mcd_cli.errors import UserError
from support.pictures import Loading, classes, fill, one_line

Batch = tuple[np.ndarray, np.ndarray]  # images [n, 32, 32, 3], labels [n]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


@pytest.fixture(params=["cifar10", "cifar100"])
def small(request: pytest.FixtureRequest) -> Cifar:
    """The data set with two images of each class in a training file and one in the test file."""
    full = CIFAR10 if request.param == "cifar10" else CIFAR100

    def fewer(layout: Layout) -> Layout:
        count = {Part.TRAIN: 2 * len(full.classes), Part.TEST: len(full.classes)}
        return replace(layout, files={name: (part, count[part]) for name, (part, _) in layout.files.items()})

    return replace(full, binary=fewer(full.binary), python=fewer(full.python))


def batches(small: Cifar) -> dict[str, Batch]:
    """By the binary layout's file names."""
    result = {}
    for i, (name, (_, count)) in enumerate(small.binary.files.items()):
        draw = np.random.default_rng(i)
        labels = draw.permutation(np.arange(count) % len(small.classes))
        result[name] = (draw.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8), labels)
    return result


def write_binary(small: Cifar, folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, (pictures, labels) in batches(small).items():
        with (folder / name).open("wb") as file:
            for picture, label in zip(pictures, labels, strict=True):
                file.write(b"\x13" * (small.label_bytes - 1) + bytes([label]))
                for channel in range(3):
                    file.write(picture[:, :, channel].tobytes())
    return folder


class Python2(pickle._Pickler):
    """Writes bytes as Python 2 wrote its strings, which is how the official batches were made."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes


def write_python(small: Cifar, folder: Path, fortran: bool = False) -> Path:
    folder.mkdir(parents=True)
    for name, (pictures, labels) in zip(small.python.files, batches(small).values(), strict=True):
        data = pictures.transpose(0, 3, 1, 2).reshape(len(pictures), -1)
        data = np.asfortranarray(data) if fortran else np.ascontiguousarray(data)
        batch = {b"data": data, small.label_key: labels.tolist(), b"batch_label": b"x", b"coarse_labels": [1]}
        with (folder / name).open("wb") as file:
            Python2(file, protocol=2).dump(batch)
    return folder


def packed(folder: Path, archive: Path) -> Path:
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(archive, "w:gz") as opened:
        opened.add(folder, arcname=folder.name)
    return archive


def read(small: Cifar, root: Path | None, image_size: int | None = None) -> Decoded:
    return cifar.read(small, Request(root, image_size, False, lambda _: None))


FORMS: dict[str, Callable[[Cifar, Path], Path | None]] = {
    "binary": lambda small, root: write_binary(small, root),
    "binary below": lambda small, root: write_binary(small, root / small.binary.folder).parent,
    "binary archive": lambda small, root: (
        packed(write_binary(small, root / "x" / small.binary.folder), root / small.binary.archive).parent
    ),
    "binary archive itself": lambda small, root: packed(
        write_binary(small, root / "x" / small.binary.folder), root / "any.tar.gz"
    ),
    "python": lambda small, root: write_python(small, root / small.python.folder).parent,
    "python, column by column": lambda small, root: write_python(small, root, fortran=True),
    "python archive": lambda small, root: (
        packed(write_python(small, root / "x" / small.python.folder), root / small.python.archive).parent
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(load: Loading, tmp_path: Path, small: Cifar, form: str) -> None:
    decoded = read(small, FORMS[form](small, tmp_path / "root"))
    made = list(batches(small).values())
    assert np.array_equal(decoded.images.transpose(0, 2, 3, 1), np.concatenate([m[0] for m in made]))
    assert np.array_equal(decoded.labels, np.concatenate([m[1] for m in made]))
    num_train = len(decoded.labels) - len(small.classes)
    assert decoded.parts.tolist() == [Part.TRAIN] * num_train + [Part.TEST] * len(small.classes)
    assert decoded.norm == small.norm
    assert decoded.fingerprint == read(small, write_binary(small, tmp_path / "again")).fingerprint


def test_the_downloads_are_the_default_place(load: Loading, tmp_path: Path, small: Cifar) -> None:
    packed(write_binary(small, tmp_path / small.binary.folder), load.cache / "downloads" / small.binary.archive)
    assert len(read(small, None).images) == len(read(small, tmp_path).images)


def test_another_image_size(load: Loading, tmp_path: Path, small: Cifar) -> None:
    root = write_binary(small, tmp_path / "root")
    picture = next(iter(batches(small).values()))[0][0]
    expected = Image.fromarray(picture).resize((16, 16), Image.Resampling.BILINEAR)
    assert np.array_equal(read(small, root, 16).images[0].transpose(1, 2, 0), np.asarray(expected))


@pytest.mark.parametrize("lost", [1, 3073, 3074])
@pytest.mark.parametrize("form", ["binary", "python"])
def test_a_file_that_is_not_whole_is_refused(load: Loading, tmp_path: Path, small: Cifar, form: str, lost: int) -> None:
    root = FORMS[form](small, tmp_path / "root")
    assert root is not None
    last = max(root.rglob("test*"))
    last.write_bytes(last.read_bytes()[:-lost])
    with pytest.raises(UserError, match=r"incomplete or damaged|not a complete CIFAR batch") as error:
        read(small, root)
    assert last.name in one_line(error)


def test_a_missing_file_is_named(load: Loading, tmp_path: Path) -> None:
    (tmp_path / "train.bin").touch()
    with pytest.raises(UserError, match=r"lacks the file 'test.bin'"):
        load("cifar100", data_root=str(tmp_path))


def test_labels_out_of_range_are_refused(load: Loading, tmp_path: Path, small: Cifar) -> None:
    root = write_binary(small, tmp_path / "root")
    path = root / next(iter(small.binary.files))
    values = bytearray(path.read_bytes())
    values[small.label_bytes - 1] = len(small.classes)
    path.write_bytes(values)
    with pytest.raises(UserError, match="labels"):
        read(small, root)


def test_an_empty_data_root_says_what_to_put_there(load: Loading, tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match=r"put cifar-10-binary\.tar\.gz there") as error:
            load("cifar10", data_root=str(root))
        one_line(error)


def test_a_copy_as_image_folder(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "root" / "train", *CIFAR10.classes, count=2).parent
    classes(root / "test", *CIFAR10.classes, count=1)
    data = load("cifar10", data_root=str(root))
    assert data.classes == CIFAR10.classes
    assert (data.mean, data.std) == CIFAR10.norm
    assert [len(ids) for ids in (data.train, data.val, data.test)] == [10, 10, 10]
    fill(root / "train" / "zebra", 3)
    with pytest.raises(UserError, match="'zebra'"):
        load("cifar10", data_root=str(root))


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        import os

        return (os.mkdir, ("was-here",))


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": Evil()},
        {b"data": np.array([Evil()], dtype=object)},
        {b"data": np.zeros(3)},
        {b"data": np.zeros(3, dtype=[("a", "u1")])},
        {b"data": memoryview},
    ],
)
def test_a_pickle_that_asks_for_more_is_refused_unexecuted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: object
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train").write_bytes(pickle.dumps(batch, protocol=3))
    with pytest.raises(UserError, match="is not safe to ") as error:
        load_pickle(tmp_path / "train")
    one_line(error)
    assert not (tmp_path / "was-here").exists()


def test_names_are_the_official_ones() -> None:
    assert len(set(CIFAR100.classes)) == 100
    assert list(CIFAR100.classes) == sorted(CIFAR100.classes)
    assert (CIFAR100.classes[0], CIFAR100.classes[50], CIFAR100.classes[99]) == ("apple", "mouse", "worm")
    assert sum(count for _, count in CIFAR10.binary.files.values()) == 60_000
    assert sum(count for _, count in CIFAR100.python.files.values()) == 60_000

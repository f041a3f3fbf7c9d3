"""How a folder of images becomes classes and splits, and which layouts are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mcd_cli.errors import UserError
from support.pictures import Loading, classes, fill, one_line, picture, pixels, stored


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


@pytest.mark.parametrize("held_out", ["val", "test", "valid", "Validation"])
def test_one_folder_beside_train_is_the_test_set(load: Loading, tmp_path: Path, held_out: str) -> None:
    classes(tmp_path / "set" / "train", "a", "b", count=20)
    classes(tmp_path / "set" / held_out, "a", "b", count=3)
    data = load(tmp_path / "set")
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 6)
    there = {pixels(path) for path in (tmp_path / "set" / held_out).glob("*/*.png")}
    assert {stored(data, i) for i in data.test} == there


def test_train_val_test_as_named(load: Loading, tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        classes(tmp_path / "set" / part, "a", "b", count=count)
    data = load(tmp_path / "set")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 6, 4)
    for part, ids in (("train", data.train), ("val", data.val), ("test", data.test)):
        for label, name in enumerate(("a", "b")):
            there = {pixels(path) for path in (tmp_path / "set" / part / name).iterdir()}
            mine = ids[data.labels[ids] == label]
            assert {stored(data, i) for i in mine} == there


@pytest.mark.parametrize("above", ["", "train"])
def test_class_folders_alone_are_cut(load: Loading, tmp_path: Path, above: str) -> None:
    classes(tmp_path / "set" / above, "a", "b", "ü", "new\nline", count=20)
    data = load(tmp_path / "set")
    assert data.classes == ("a", "b", "new\nline", "ü")
    assert (len(data.train), len(data.val), len(data.test)) == (64, 8, 8)
    for ids, count in ((data.train, 16), (data.val, 2), (data.test, 2)):
        assert set(Counter(data.labels[ids].tolist()).values()) == {count}


def test_a_class_may_be_called_train(load: Loading, tmp_path: Path) -> None:
    classes(tmp_path / "set", "car", "plane", "train")
    assert load(tmp_path / "set").classes == ("car", "plane", "train")


def test_other_folders_beside_the_parts_are_told(load: Loading, tmp_path: Path) -> None:
    for part in ("train", "test"):
        classes(tmp_path / "set" / part, "a", "b")
    (tmp_path / "set" / "notes").mkdir()
    assert load(tmp_path / "set").classes == ("a", "b")
    assert any("ignoring the other folders: notes" in line for line in load.said)


def test_what_lies_deeper_belongs_to_the_class_and_links_are_followed(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    fill(root / "a" / "more" / "and more", 5)
    fill(tmp_path / "elsewhere", 5)
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "one.png").symlink_to(tmp_path / "elsewhere" / "000.png")
    assert Counter(load(root).labels.tolist()) == {0: 15, 1: 16}


def test_what_is_no_image_is_passed_over_and_told_unless_it_is_common(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    for name in (".hidden.png", "Thumbs.db", "notes.txt", "boxes.csv", ".DS_Store", "README.md"):
        (root / "a" / name).write_text("x")
    (root / ".git").mkdir()
    (root / "README").write_text("x")
    (root / "a" / "drawing.svg").write_text("x")
    (root / "a" / "figure.eps").write_text("x")  # PIL would hand it to Ghostscript
    assert len(load(root).images) == 20
    (line,) = [line for line in load.said if "without an image suffix" in line]
    assert "3 files" in line
    assert "'a/drawing.svg'" in line


def broken_layouts() -> dict[str, tuple[Callable[[Path], object], str]]:
    return {
        "empty": (lambda root: root.mkdir(), "no class folders"),
        "one class": (lambda root: classes(root, "a"), "only the class 'a'"),
        "folder in a folder": (
            lambda root: classes(root / "set" / "train", "a", "b"),
            "did you mean",
        ),
        "empty class": (lambda root: (classes(root, "a", "b"), (root / "c").mkdir()), "'c'"),
        "loose image": (lambda root: (classes(root, "a", "b"), picture(0).save(root / "x.png")), "'x.png'"),
        "unlabelled test": (
            lambda root: (classes(root / "train", "a", "b"), fill(root / "test", 3)),
            "is not in a class folder",
        ),
        "new class in test": (
            lambda root: (classes(root / "train", "a", "b"), classes(root / "test", "a", "c")),
            "'c'",
        ),
        "empty test": (
            lambda root: (classes(root / "train", "a", "b"), (root / "test").mkdir()),
            "no class folders",
        ),
        "no train": (
            lambda root: (classes(root / "val", "a", "b"), classes(root / "test", "a", "b")),
            "no train",
        ),
        "val twice": (
            lambda root: [classes(root / part, "a", "b") for part in ("train", "val", "valid")],
            "keep one",
        ),
        "small class": (lambda root: (classes(root, "a", "b"), fill(root / "tiny", 2)), "'tiny' has 2"),
        "loop": (lambda root: (classes(root, "a", "b"), (root / "a" / "x").symlink_to(root)), "'a/x'"),
    }


@pytest.mark.parametrize("layout", broken_layouts())
def test_a_broken_layout_is_told_in_one_line(load: Loading, tmp_path: Path, layout: str) -> None:
    make, words = broken_layouts()[layout]
    make(tmp_path / "set")
    with pytest.raises(UserError) as error:
        load(tmp_path / "set")
    assert words in one_line(error)

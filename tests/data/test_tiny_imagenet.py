"""Tiny-ImageNet's original layout, with fewer images."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mcd_cli.errors import UserError
from support.pictures import Loading, one_line, picture, pixels, stored

WNIDS = ["n02000002", "n01000001", "n03000003", "n04000004"]  # wnids.txt is in no order
SORTED = sorted(WNIDS)
VAL = [2, 0, 1, 1, 3, 0, 2, 3]  # classes of val_0, val_1, ...


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "tiny-imagenet-200"
    for c, wnid in enumerate(SORTED):
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("0\t0\t62\t62\n")
        for i in range(10):
            path = root / "train" / wnid / "images" / f"{wnid}_{i}.JPEG"
            image = picture(100 * c + i, 64, 64)
            (image.convert("L") if i == 3 else image).save(path)  # some are grey
    (root / "val" / "images").mkdir(parents=True)
    (root / "test" / "images").mkdir(parents=True)
    for i in range(len(VAL)):
        picture(1000 + i, 64, 64).save(root / "val" / "images" / f"val_{i}.JPEG")
        picture(2000 + i, 64, 64).save(root / "test" / "images" / f"test_{i}.JPEG")
    (root / "val" / "val_annotations.txt").write_text(
        "".join(f"val_{i}.JPEG\t{SORTED[c]}\t0\t32\t44\t62\n" for i, c in enumerate(VAL))
    )
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text(
        "n01000001\tgoldfish, Carassius auratus\nn02000002\tcrane\nn03000003\tcrane\nn09999999\tother\n"
    )
    return root


def test_the_official_split_and_names(load: Loading, root: Path) -> None:
    data = load("tinyimagenet", data_root=str(root))
    assert data.classes == ("goldfish", "crane (n02000002)", "crane (n03000003)", "n04000004")
    assert data.input_shape == (3, 64, 64)
    assert [len(ids) for ids in (data.train, data.val, data.test)] == [36, 4, 8]
    assert data.mean == (0.4802, 0.4481, 0.3975)
    for i, label in enumerate(VAL):
        (index,) = [k for k in data.test if stored(data, k) == pixels(root / "val" / "images" / f"val_{i}.JPEG")]
        assert data.labels[index] == label
    for c, wnid in enumerate(SORTED):
        path = root / "train" / wnid / "images" / f"{wnid}_5.JPEG"
        (index,) = [k for k in (*data.train, *data.val) if stored(data, k) == pixels(path)]
        assert data.labels[index] == c


def test_the_folder_the_one_above_and_the_zip_are_alike(load: Loading, root: Path, tmp_path: Path) -> None:
    place = tmp_path / "zipped"
    archive = shutil.make_archive(str(place / "tiny-imagenet-200"), "zip", tmp_path, root.name)
    prints = {load("tinyimagenet", data_root=str(p)).fingerprint for p in (root, tmp_path, place, archive)}
    (load.cache / "downloads").mkdir()
    shutil.copy(archive, load.cache / "downloads")
    prints.add(load("tinyimagenet").fingerprint)
    assert len(prints) == 1


def test_without_words_the_classes_are_the_wnids(load: Loading, root: Path) -> None:
    (root / "words.txt").unlink()
    assert load("tinyimagenet", data_root=str(root)).classes == tuple(SORTED)


@pytest.mark.parametrize(
    ("annotations", "words"),
    [
        ("val_0.JPEG\tn01000001\t0\t0\t1\t1\n", "'val_1.JPEG'"),
        ("".join(f"val_{i}.JPEG\tn07\t0\n" for i in range(8)), "'n07'"),
        ("nonsense\n", "val_annotations.txt"),
        (None, "val_annotations.txt"),
    ],
)
def test_a_test_set_without_labels_is_refused(load: Loading, root: Path, annotations: str | None, words: str) -> None:
    path = root / "val" / "val_annotations.txt"
    path.unlink() if annotations is None else path.write_text(annotations)
    with pytest.raises(UserError) as error:
        load("tinyimagenet", data_root=str(root))
    assert words in one_line(error)


def test_a_bad_image_is_named_and_can_be_skipped(load: Loading, root: Path) -> None:
    (root / "train" / SORTED[0] / "images" / f"{SORTED[0]}_0.JPEG").write_bytes(b"")
    with pytest.raises(UserError, match=r"_0\.JPEG"):
        load("tinyimagenet", data_root=str(root))
    assert len(load("tinyimagenet", data_root=str(root), skip_bad_images=True).images) == 47


def test_an_empty_data_root_says_what_to_put_there(load: Loading, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"put tiny-imagenet-200\.zip there"):
        load("tinyimagenet", data_root=str(tmp_path / "empty"))

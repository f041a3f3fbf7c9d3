"""What a data set holds, and which one a name selects."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcd_cli.data import DATASETS
from mcd_cli.errors import UserError
from support.pictures import Loading, classes, one_line, picture


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


def test_names_are_known_without_torch_or_numpy() -> None:
    code = "import sys, mcd_cli.data; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(DATASETS) == {"numbers", "digits", "cifar10", "cifar100", "tinyimagenet"}
    for name in DATASETS:
        assert callable(DATASETS.load(name))


def test_digits(load: Loading) -> None:
    from sklearn.datasets import load_digits

    digits = load("digits")
    bunch = load_digits()
    assert digits.input_shape == (3, 16, 16)
    assert digits.classes == tuple("0123456789")
    assert digits.labels.tolist() == bunch.target.tolist()
    assert digits.images.dtype == torch.uint8
    assert [round(len(ids) / 1797, 2) for ids in (digits.train, digits.val, digits.test)] == [0.6, 0.15, 0.25]
    # Bilinear doubling keeps the means of 8x8 (but for the border), and every image recognisable.
    small = digits.images.float().mean(1).unflatten(2, (8, 2)).unflatten(1, (8, 2)).mean((2, 4)) / 255 * 16
    correlation = np.corrcoef(small.flatten().numpy(), bunch.images.flatten())[0, 1]
    assert correlation > 0.97
    assert load("digits", image_size=8).images[5, 0].tolist() == np.rint(bunch.images[5] * 255 / 16).tolist()


def test_mean_and_std_are_those_of_train_and_v(load: Loading, tmp_path: Path) -> None:
    data = load(classes(tmp_path / "set", "a", "b", count=20))
    seen = torch.cat([data.train, data.val])
    pixels = data.images[seen].double() / 255
    torch.testing.assert_close(data.mean, tuple(pixels.mean((0, 2, 3)).tolist()), atol=1e-6, rtol=0)
    deviation = pixels.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(data.std, tuple(deviation.tolist()), atol=1e-6, rtol=0)


def test_a_constant_channel_has_std_one(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    for path in root.glob("*/*.png"):
        values = np.asarray(Image.open(path)).copy()
        values[..., 2] = 7
        Image.fromarray(values).save(path)
    data = load(root)
    assert data.std[2] == 1.0
    assert data.std[0] < 1.0


def test_the_fingerprint_is_of_content_alone(load: Loading, tmp_path: Path) -> None:
    base = load(classes(tmp_path / "set", "a", "b"))
    os.rename(tmp_path / "set", tmp_path / "moved")
    moved = load(tmp_path / "moved", split_seed=5, label_noise=0.2)
    assert moved.fingerprint == base.fingerprint
    os.rename(tmp_path / "moved" / "b", tmp_path / "moved" / "c")
    assert load(tmp_path / "moved").fingerprint != base.fingerprint
    os.rename(tmp_path / "moved" / "c", tmp_path / "moved" / "b")
    picture(99).save(tmp_path / "moved" / "b" / "000.png")
    assert load(tmp_path / "moved").fingerprint != base.fingerprint


def test_label_noise_is_in_the_training_labels_alone(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b", "c", count=20)
    clean, noisy = load(root), load(root, label_noise=0.25)
    moved = (clean.labels != noisy.labels).nonzero().flatten()
    assert len(moved) == len(clean.train) // 4
    assert set(moved.tolist()) <= set(clean.train.tolist())
    with pytest.raises(UserError, match="label noise"):
        load(root, label_noise=1.0)


def test_a_built_in_name_wins_and_a_path_forces_the_folder(
    load: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classes(tmp_path / "digits", "x", "y")
    classes(tmp_path / "mine", "x", "y")
    monkeypatch.chdir(tmp_path)
    assert load("digits").num_classes == 10
    assert load("./digits").classes == ("x", "y")
    assert load("mine").name == "mine"
    assert load("mine", data_root=str(tmp_path)).name == "mine"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("cifar1000", "did you mean cifar100"),
        ("flowers", "no folder of that name"),
        ("./flowers", "does not exist"),
        ("", "unknown data set"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(load: Loading, name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load(name)
    assert words in one_line(error)


def test_a_file_is_no_data_set(load: Loading, tmp_path: Path) -> None:
    (tmp_path / "set.zip").touch()
    with pytest.raises(UserError, match="is a file; unpack it"):
        load(tmp_path / "set.zip")

"""Data sets: what is read, what is refused, and what is kept in the cache."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mcd_cli.data import DATASETS, load_dataset
from mcd_cli.data.dataset import Dataset
from mcd_cli.errors import UserError

Loader = Callable[..., Dataset]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MCD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def load(said: list[str]) -> Loader:
    return lambda name, **options: load_dataset(str(name), report=said.append, **options)


def picture(seed: int, width: int = 8, height: int = 8) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def fill(folder: Path, count: int, seed: int = 0, **size: int) -> list[Path]:
    folder.mkdir(parents=True)
    paths = [folder / f"{i:03d}.png" for i in range(count)]
    for i, path in enumerate(paths):
        picture(1000 * seed + i, **size).save(path)
    return paths


def classes(root: Path, *names: str, count: int = 10) -> Path:
    for i, name in enumerate(names):
        fill(root / name, count, seed=hash_of(f"{root.name}/{name}") + i)
    return root


def hash_of(text: str) -> int:
    return int(hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()[:4], 16)


def lines(error: pytest.ExceptionInfo[UserError]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


# What a data set is


def test_names_are_known_without_torch_or_numpy() -> None:
    code = "import sys, mcd_cli.data; assert not {'torch', 'numpy', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(DATASETS) == {"digits", "cifar10", "cifar100", "tinyimagenet"}
    for name in DATASETS:
        assert callable(DATASETS.load(name))


def test_digits(load: Loader) -> None:
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


def test_mean_and_std_are_those_of_train_and_v(load: Loader, tmp_path: Path) -> None:
    data = load(classes(tmp_path / "set", "a", "b", count=20))
    seen = torch.cat([data.train, data.val])
    pixels = data.images[seen].double() / 255
    torch.testing.assert_close(data.mean, tuple(pixels.mean((0, 2, 3)).tolist()), atol=1e-6, rtol=0)
    deviation = pixels.transpose(0, 1).flatten(1).std(1, correction=0)
    torch.testing.assert_close(data.std, tuple(deviation.tolist()), atol=1e-6, rtol=0)


def test_a_constant_channel_has_std_one(load: Loader, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    for path in root.glob("*/*.png"):
        values = np.asarray(Image.open(path)).copy()
        values[..., 2] = 7
        Image.fromarray(values).save(path)
    data = load(root)
    assert data.std[2] == 1.0
    assert data.std[0] < 1.0


def test_the_fingerprint_is_of_content_alone(load: Loader, tmp_path: Path) -> None:
    base = load(classes(tmp_path / "set", "a", "b"))
    os.rename(tmp_path / "set", tmp_path / "moved")
    moved = load(tmp_path / "moved", split_seed=5, label_noise=0.2)
    assert moved.fingerprint == base.fingerprint
    os.rename(tmp_path / "moved" / "b", tmp_path / "moved" / "c")
    assert load(tmp_path / "moved").fingerprint != base.fingerprint
    os.rename(tmp_path / "moved" / "c", tmp_path / "moved" / "b")
    picture(99).save(tmp_path / "moved" / "b" / "000.png")
    assert load(tmp_path / "moved").fingerprint != base.fingerprint


def test_label_noise_is_in_the_training_labels_alone(load: Loader, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b", "c", count=20)
    clean, noisy = load(root), load(root, label_noise=0.25)
    moved = (clean.labels != noisy.labels).nonzero().flatten()
    assert len(moved) == len(clean.train) // 4
    assert set(moved.tolist()) <= set(clean.train.tolist())
    with pytest.raises(UserError, match="label noise"):
        load(root, label_noise=1.0)


# Which data set is meant


def test_a_built_in_name_wins_and_a_path_forces_the_folder(
    load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
        ("flowers", "no folder has that name"),
        ("./flowers", "does not exist"),
        ("", "unknown data set"),
    ],
)
def test_an_unknown_name_is_told_with_the_nearest(load: Loader, name: str, words: str) -> None:
    with pytest.raises(UserError) as error:
        load(name)
    assert words in lines(error)


def test_a_file_is_no_data_set(load: Loader, tmp_path: Path) -> None:
    (tmp_path / "set.zip").touch()
    with pytest.raises(UserError, match="is a file; unpack it"):
        load(tmp_path / "set.zip")


# How a folder is split


@pytest.mark.parametrize("held_out", ["val", "test", "valid", "Validation"])
def test_one_folder_beside_train_is_the_test_set(load: Loader, tmp_path: Path, held_out: str) -> None:
    classes(tmp_path / "set" / "train", "a", "b", count=20)
    classes(tmp_path / "set" / held_out, "a", "b", count=3)
    data = load(tmp_path / "set")
    assert (len(data.train), len(data.val), len(data.test)) == (36, 4, 6)
    stored = {picture_bytes(path) for path in (tmp_path / "set" / held_out).glob("*/*.png")}
    assert {bytes(data.images[i].permute(1, 2, 0).numpy().tobytes()) for i in data.test} == stored


def picture_bytes(path: Path) -> bytes:
    return Image.open(path).tobytes()


def test_train_val_test_as_named(load: Loader, tmp_path: Path) -> None:
    for part, count in (("train", 5), ("val", 3), ("test", 2)):
        classes(tmp_path / "set" / part, "a", "b", count=count)
    data = load(tmp_path / "set")
    assert (len(data.train), len(data.val), len(data.test)) == (10, 6, 4)
    for part, ids in (("train", data.train), ("val", data.val), ("test", data.test)):
        for label, name in enumerate(("a", "b")):
            stored = {picture_bytes(path) for path in (tmp_path / "set" / part / name).iterdir()}
            mine = ids[data.labels[ids] == label]
            assert {data.images[i].permute(1, 2, 0).numpy().tobytes() for i in mine} == stored


@pytest.mark.parametrize("above", ["", "train"])
def test_class_folders_alone_are_cut(load: Loader, tmp_path: Path, above: str) -> None:
    classes(tmp_path / "set" / above, "a", "b", "ü", "new\nline", count=20)
    data = load(tmp_path / "set")
    assert data.classes == ("a", "b", "new\nline", "ü")
    assert (len(data.train), len(data.val), len(data.test)) == (64, 8, 8)
    for ids, count in ((data.train, 16), (data.val, 2), (data.test, 2)):
        assert set(Counter(data.labels[ids].tolist()).values()) == {count}


def test_a_class_may_be_called_train(load: Loader, tmp_path: Path, said: list[str]) -> None:
    classes(tmp_path / "set", "car", "plane", "train")
    assert load(tmp_path / "set").classes == ("car", "plane", "train")


def test_other_folders_beside_the_parts_are_told(load: Loader, tmp_path: Path, said: list[str]) -> None:
    for part in ("train", "test"):
        classes(tmp_path / "set" / part, "a", "b")
    (tmp_path / "set" / "notes").mkdir()
    assert load(tmp_path / "set").classes == ("a", "b")
    assert any("ignoring the other folders: notes" in line for line in said)


def test_what_lies_deeper_belongs_to_the_class_and_links_are_followed(load: Loader, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    fill(root / "a" / "more" / "and more", 5)
    fill(tmp_path / "elsewhere", 5)
    (root / "b" / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "b" / "one.png").symlink_to(tmp_path / "elsewhere" / "000.png")
    assert Counter(load(root).labels.tolist()) == {0: 15, 1: 16}


def test_what_is_no_image_is_passed_over_and_told_unless_it_is_common(
    load: Loader, tmp_path: Path, said: list[str]
) -> None:
    root = classes(tmp_path / "set", "a", "b")
    for name in (".hidden.png", "Thumbs.db", "notes.txt", "boxes.csv", ".DS_Store", "README.md"):
        (root / "a" / name).write_text("x")
    (root / ".git").mkdir()
    (root / "README").write_text("x")
    (root / "a" / "drawing.svg").write_text("x")
    (root / "a" / "figure.eps").write_text("x")  # PIL would hand it to Ghostscript
    assert len(load(root).images) == 20
    (line,) = [line for line in said if "passed over" in line]
    assert "3 files" in line
    assert "'a/drawing.svg'" in line


def broken_layouts() -> dict[str, tuple[Callable[[Path], object], str]]:
    return {
        "empty": (lambda root: root.mkdir(), "found no class folder"),
        "one class": (lambda root: classes(root, "a"), "only the class 'a'"),
        "folder in a folder": (
            lambda root: classes(root / "set" / "train", "a", "b"),
            "did you mean",
        ),
        "empty class": (lambda root: (classes(root, "a", "b"), (root / "c").mkdir()), "'c'"),
        "loose image": (lambda root: (classes(root, "a", "b"), picture(0).save(root / "x.png")), "'x.png'"),
        "unlabelled test": (
            lambda root: (classes(root / "train", "a", "b"), fill(root / "test", 3)),
            "lies in no class folder",
        ),
        "new class in test": (
            lambda root: (classes(root / "train", "a", "b"), classes(root / "test", "a", "c")),
            "'c'",
        ),
        "empty test": (
            lambda root: (classes(root / "train", "a", "b"), (root / "test").mkdir()),
            "no images",
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
def test_a_broken_layout_is_told_in_one_line(load: Loader, tmp_path: Path, layout: str) -> None:
    make, words = broken_layouts()[layout]
    make(tmp_path / "set")
    with pytest.raises(UserError) as error:
        load(tmp_path / "set")
    assert words in lines(error)


# Bad images


def bad_files(folder: Path) -> dict[str, Callable[[Path], object]]:
    whole = folder / "000.png"
    return {
        "empty": lambda path: path.write_bytes(b""),
        "text": lambda path: path.write_text("no image"),
        "truncated": lambda path: path.write_bytes(whole.read_bytes()[:-60]),
        "broken link": lambda path: path.symlink_to(folder / "nothing.png"),
        "link to itself": lambda path: path.symlink_to(path),
        "pipe": lambda path: os.mkfifo(path),
        "bomb": lambda path: Image.new("1", (40000, 40000)).save(path),
        "large": lambda path: Image.new("1", (10000, 9000)).save(path),  # below where PIL itself refuses
        "float": lambda path: Image.new("F", (8, 8)).save(path, format="TIFF"),
    }


@pytest.mark.parametrize("kind", bad_files(Path()))
def test_a_bad_image_is_named_or_skipped_and_told(
    load: Loader, tmp_path: Path, said: list[str], kind: str
) -> None:
    root = classes(tmp_path / "set", "a", "b")
    bad_files(root / "a")[kind](root / "a" / "bäd\nname.png")
    with pytest.raises(UserError) as error:
        load(root)
    assert "'a/bäd\\nname.png'" in lines(error)
    assert "--skip-bad-images" in lines(error)
    for _ in range(2):  # the cached copy tells it too
        said.clear()
        data = load(root, skip_bad_images=True)
        assert Counter(data.labels.tolist()) == {0: 10, 1: 10}
        (line,) = [line for line in said if "skipped" in line]
        assert "skipped 1 unreadable of 21 images: 'a/bäd\\nname.png'" in line


def test_a_class_of_bad_images_alone_is_an_error_even_when_skipping(load: Loader, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="'b' has 0"):
        load(root, skip_bad_images=True)


# Decoding


def one_class_image(
    load: Loader, tmp_path: Path, save: Callable[[Path], object], **options: object
) -> np.ndarray:
    """What becomes of one image, as [H, W, 3]; it stands last in class b."""
    root = classes(tmp_path / "set", "a", "b")
    save(root / "b")
    data = load(root, **options)
    return data.images[-1].permute(1, 2, 0).numpy()


def gradient(dtype: type, top: int) -> np.ndarray:
    return np.linspace(0, top, 64).reshape(8, 8).astype(dtype)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", "YCbCr", "P", "1"])
def test_modes_are_as_torchvisions_loader_makes_them(load: Loader, tmp_path: Path, mode: str) -> None:
    from torchvision.datasets.folder import pil_loader

    image = picture(7).convert("RGBA")
    image.putalpha(Image.fromarray(gradient(np.uint8, 255)))
    name = "z.tif" if mode in ("CMYK", "YCbCr") else "z.png"
    image = image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "P", "1") else image.convert(mode)
    got = one_class_image(load, tmp_path, lambda folder: image.save(folder / name))
    assert np.array_equal(got, np.asarray(pil_loader(str(tmp_path / "set" / "b" / name))))


def test_a_palette_with_transparency_keeps_its_colours(load: Loader, tmp_path: Path) -> None:
    image = picture(7).quantize(16)
    colours = np.asarray(image.convert("RGB"))
    got = one_class_image(
        load, tmp_path, lambda folder: image.save(folder / "z.png", transparency=bytes(range(0, 256, 16)))
    )
    assert np.array_equal(got, colours)


@pytest.mark.parametrize("name", ["z.png", "z.tif", "z.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(load: Loader, tmp_path: Path, name: str) -> None:
    values = gradient(np.uint16, 65535)
    got = one_class_image(load, tmp_path, lambda folder: Image.fromarray(values).save(folder / name))
    expected = np.rint(values.astype(float) / 65535 * 255)
    assert np.array_equal(got[..., 0], expected)
    assert np.array_equal(got[..., 0], got[..., 2])


def test_mixed_sizes_become_squares_and_that_is_told(load: Loader, tmp_path: Path, said: list[str]) -> None:
    got = one_class_image(load, tmp_path, lambda folder: picture(3, 80, 70).save(folder / "z.png"))
    assert got.shape == (64, 64, 3)
    assert any("64x64" in line and "--image-size" in line for line in said)


@pytest.mark.parametrize(("width", "height"), [(50, 31), (31, 50), (17, 17), (5, 9), (300, 40)])
def test_squares_are_as_torchvisions_resize_and_crop(
    load: Loader, tmp_path: Path, width: int, height: int
) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = picture(3, width, height)
    got = one_class_image(load, tmp_path, lambda folder: image.save(folder / "z.png"), image_size=16)
    expected = np.asarray(Compose([Resize(16), CenterCrop(16)])(image))
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1


def test_a_long_thin_image_stays_small_in_memory(load: Loader, tmp_path: Path) -> None:
    got = one_class_image(
        load, tmp_path, lambda folder: picture(3, 20_000, 1).save(folder / "z.png"), image_size=64
    )
    assert got.shape == (64, 64, 3)  # 64 x 1,280,000 on the way, were it resized first


# The cache


def test_the_second_start_decodes_nothing(load: Loader, tmp_path: Path, said: list[str], cache: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    assert any("decoding" in line for line in said)
    said.clear()
    second = load(root)
    assert said == []
    assert torch.equal(first.images, second.images)
    assert (first.fingerprint, first.mean) == (second.fingerprint, second.mean)
    assert len(list((cache / "datasets").glob("*/images.npy"))) == 1
    assert not list((cache / "datasets").glob("*tmp*"))


def test_a_changed_file_is_read_again(load: Loader, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    status = (root / "a" / "000.png").stat()
    picture(4).save(root / "a" / "000.png")
    os.utime(root / "a" / "000.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not torch.equal(load(root).images, first.images)


@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_a_torn_copy_is_never_used(load: Loader, tmp_path: Path, cache: Path, name: str) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    (path,) = (cache / "datasets").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:-1])
    again = load(root)
    assert torch.equal(again.images, first.images)
    assert again.fingerprint == first.fingerprint


def test_what_a_killed_writer_left_is_removed(load: Loader, tmp_path: Path, cache: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    load(root)
    (folder,) = (path for path in (cache / "datasets").iterdir() if path.is_dir())
    folder.rename(f"{folder}.tmp-left")
    load(root)
    assert [path for path in (cache / "datasets").iterdir() if path.is_dir()] == [folder]


def test_many_first_starts_at_once_agree(load: Loader, tmp_path: Path, said: list[str]) -> None:
    root = classes(tmp_path / "set", "a", "b", count=30)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, [root] * 4))
    assert len({data.fingerprint for data in loaded}) == 1
    assert sum("decoding" in line for line in said) == 1


def test_an_unwritable_cache_is_told(load: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "set", "a", "b")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCD_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set MCD_CACHE"):
        load(root)


def test_the_cached_copy_holds_no_pickle(load: Loader, tmp_path: Path, cache: Path) -> None:
    load(classes(tmp_path / "set", "a", "b"))
    (folder,) = (path for path in (cache / "datasets").iterdir() if path.is_dir())
    for path in folder.glob("*.npy"):
        np.load(path, allow_pickle=False)
    assert json.loads((folder / "meta.json").read_text())["classes"] == ["a", "b"]

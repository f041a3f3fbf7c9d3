"""One image: decoded, cropped to a square, refused or skipped."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import PIL
import pytest
from PIL import Image

from mcd_cli.errors import UserError
from support.pictures import Loading, classes, huge_png, one_line, picture


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


def bad_files(folder: Path) -> dict[str, tuple[Callable[[Path], object], str]]:
    whole = folder / "000.png"
    return {
        "empty": (lambda path: path.write_bytes(b""), "empty"),
        "text": (lambda path: path.write_text("no image"), "not in an image format"),
        "truncated": (lambda path: path.write_bytes(whole.read_bytes()[:-60]), "truncated"),
        "broken link": (lambda path: path.symlink_to(folder / "nothing.png"), "broken link"),
        "link to itself": (lambda path: path.symlink_to(path), "broken link"),
        "pipe": (lambda path: os.mkfifo(path), "not a regular file"),
        "bomb": (lambda path: path.write_bytes(huge_png(40_000, 40_000)), "pixels"),
        "large": (lambda path: path.write_bytes(huge_png(10_000, 9_000)), "pixels"),  # PIL would only warn
        "float": (lambda path: Image.new("F", (8, 8)).save(path, format="TIFF"), "range is unknown"),
    }


@pytest.mark.parametrize("kind", bad_files(Path()))
def test_a_bad_image_is_named_or_skipped_and_told(load: Loading, tmp_path: Path, kind: str) -> None:
    root = classes(tmp_path / "set", "a", "b")
    make, words = bad_files(root / "a")[kind]
    make(root / "a" / "bäd\nname.png")
    with pytest.raises(UserError) as error:
        load(root)
    assert "'a/bäd\\nname.png'" in one_line(error)
    assert words in one_line(error)
    assert "--skip-bad-images" in one_line(error)
    for _ in range(2):  # the cached copy tells it too
        load.said.clear()
        data = load(root, skip_bad_images=True)
        assert Counter(data.labels.tolist()) == {0: 10, 1: 10}
        (line,) = [line for line in load.said if "skipped" in line]
        assert "skipped 1 of 21 images, which cannot be read: 'a/bäd\\nname.png'" in line


def test_a_class_of_bad_images_alone_is_an_error_even_when_skipping(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    for path in (root / "b").iterdir():
        path.write_bytes(b"")
    with pytest.raises(UserError, match="'b' has 0"):
        load(root, skip_bad_images=True)


def one_class_image(load: Loading, tmp_path: Path, save: Callable[[Path], object], **options: object) -> np.ndarray:
    """What becomes of one image, as [H, W, 3]; it stands last in class b."""
    root = classes(tmp_path / "set", "a", "b")
    save(root / "b")
    data = load(root, **options)
    return data.images[-1].permute(1, 2, 0).numpy()


def gradient(dtype: type, top: int) -> np.ndarray:
    return np.linspace(0, top, 64).reshape(8, 8).astype(dtype)


READS_ITS_YCBCR = int(PIL.__version__.partition(".")[0]) >= 13
YCBCR = pytest.param("YCbCr", marks=pytest.mark.skipif(not READS_ITS_YCBCR, reason="Pillow cannot read what it wrote"))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "CMYK", YCBCR, "P", "1"])
def test_modes_are_as_torchvisions_loader_makes_them(load: Loading, tmp_path: Path, mode: str) -> None:
    from torchvision.datasets.folder import pil_loader

    image = picture(7).convert("RGBA")
    image.putalpha(Image.fromarray(gradient(np.uint8, 255)))
    name = "z.tif" if mode in ("CMYK", "YCbCr") else "z.png"
    image = image.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "P", "1") else image.convert(mode)
    got = one_class_image(load, tmp_path, lambda folder: image.save(folder / name))
    assert np.array_equal(got, np.asarray(pil_loader(str(tmp_path / "set" / "b" / name))))


def test_the_orientation_tag_is_left_alone(load: Loading, tmp_path: Path) -> None:
    image = picture(7)
    tags = Image.Exif()
    tags[0x0112] = 6  # "turn me"
    got = one_class_image(load, tmp_path, lambda folder: image.save(folder / "z.png", exif=tags))
    assert np.array_equal(got, np.asarray(image))


def test_a_palette_with_transparency_keeps_its_colours(load: Loading, tmp_path: Path) -> None:
    image = picture(7).quantize(16)
    colours = np.asarray(image.convert("RGB"))
    got = one_class_image(
        load, tmp_path, lambda folder: image.save(folder / "z.png", transparency=bytes(range(0, 256, 16)))
    )
    assert np.array_equal(got, colours)


@pytest.mark.parametrize("name", ["z.png", "z.tif", "z.pgm"])
def test_sixteen_bits_are_scaled_not_clipped(load: Loading, tmp_path: Path, name: str) -> None:
    values = gradient(np.uint16, 65535)
    got = one_class_image(load, tmp_path, lambda folder: Image.fromarray(values).save(folder / name))
    expected = np.rint(values.astype(float) / 65535 * 255)
    assert np.array_equal(got[..., 0], expected)
    assert np.array_equal(got[..., 0], got[..., 2])


def test_mixed_sizes_become_squares_and_that_is_told(load: Loading, tmp_path: Path) -> None:
    got = one_class_image(load, tmp_path, lambda folder: picture(3, 80, 70).save(folder / "z.png"))
    assert got.shape == (64, 64, 3)
    assert any("64x64" in line and "--image-size" in line for line in load.said)


@pytest.mark.parametrize(("width", "height"), [(50, 31), (31, 50), (17, 17), (5, 9), (300, 40)])
def test_squares_are_as_torchvisions_resize_and_crop(load: Loading, tmp_path: Path, width: int, height: int) -> None:
    from torchvision.transforms import CenterCrop, Compose, Resize

    image = picture(3, width, height)
    got = one_class_image(load, tmp_path, lambda folder: image.save(folder / "z.png"), image_size=16)
    expected = np.asarray(Compose([Resize(16), CenterCrop(16)])(image))
    assert np.abs(got.astype(int) - expected.astype(int)).max() <= 1


def test_a_long_thin_image_stays_small_in_memory(load: Loading, tmp_path: Path) -> None:
    got = one_class_image(load, tmp_path, lambda folder: picture(3, 20_000, 1).save(folder / "z.png"), image_size=64)
    assert got.shape == (64, 64, 3)  # 64 x 1,280,000 on the way, were it resized first

"""Hostile data: image files and folders, archives, CIFAR's batches, Tiny-ImageNet's lists; and data that change."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import stat
import tarfile
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import features

from mcd_cli.data import archive, load_dataset, tiny_imagenet
from mcd_cli.data.cifar import CIFAR10, _binary, _python
from mcd_cli.data.images import BadImage, _attempt
from mcd_cli.data.listing import file_at
from mcd_cli.errors import UserError
from support.hostile import edited, edits, fuzz, promise, texts, workplace
from support.pictures import classes, huge_png, one_line, picture

# --- images

FORMATS = [
    "PNG",
    "JPEG",
    "GIF",
    "BMP",
    "TIFF",
    "PPM",
    "TGA",
    "ICO",
    "PCX",
    "SGI",
    "ICNS",
    "DDS",
    "IM",
    "MSP",
    "XBM",
    "SPIDER",
]
FORMATS += [
    name for name, codec in (("WEBP", "webp"), ("JPEG2000", "jpg_2000"), ("AVIF", "avif")) if features.check(codec)
]


@cache
def image_bytes(name: str) -> bytes:
    file = io.BytesIO()
    image = picture(3, 16, 16)
    image = image.convert({"MSP": "1", "XBM": "1", "SPIDER": "F"}.get(name, "RGB"))
    image.save(file, format=name, **({"compression": "tiff_lzw"} if name == "TIFF" else {}))
    return file.getvalue()


@fuzz(80)
@given(st.sampled_from(FORMATS), edits)
@pytest.mark.filterwarnings("ignore")
def test_image_bytes(name: str, changes: Any) -> None:
    with workplace() as folder:
        (folder / "x.png").write_bytes(edited(image_bytes(name), changes, head=200))

        def read() -> None:
            result = _attempt(file_at(folder / "x.png", "x.png"), folder, 8, False)
            if isinstance(result, BadImage):
                raise UserError(f"{result}")
            assert result.shape == (3, 8, 8)

        promise(f"images, {name}", read, folder)


# --- folders

ENTRIES = ["image", "image", "empty", "text", "huge", "folder", "loop", "up", "broken", "pipe", "itself", "outside"]
byte_names = st.one_of(
    st.sampled_from(
        [b"a", b"b", b"c", b"train", b"val", b"test", b"x.png", b"new\nline.png", b"\xff\xfe", b"\xff.png", b"\x1b[31m"]
    ),
    st.sampled_from(["é.jpg".encode(), b".hidden", b" ", b"-rf", b"a" * 250 + b".png", b"x.tar", b"x.pdf", b"x.eps"]),
    st.binary(min_size=1, max_size=8).filter(lambda name: not set(name) & {0, 47} and name not in (b".", b"..")),
)
whole_sets = st.booleans()
trees = st.lists(st.tuples(st.lists(byte_names, min_size=1, max_size=3), st.sampled_from(ENTRIES)), max_size=8)


def plant(root: bytes, names: list[bytes], kind: str) -> None:
    """One more thing in the tree, unless something stands in its way."""
    path = os.path.join(root, *names)
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        match kind:
            case "folder":
                os.mkdir(path)
            case "loop" | "up" | "broken" | "outside":
                target = {"loop": b".", "up": root, "broken": b"nothing", "outside": b"/dev"}[kind]
                os.symlink(target, path)
            case "itself":
                os.symlink(path, path)
            case "pipe":
                os.mkfifo(path)
            case _:
                content = {"image": image_bytes("PNG"), "huge": huge_png(60_000, 60_000), "text": b"no image"}
                with open(path, "xb") as file:
                    file.write(content.get(kind, b""))
    except OSError:
        pass


@fuzz(60, cost=4)
@given(whole_sets, trees, st.booleans())
def test_image_folders(is_whole: bool, entries: Any, skip: bool) -> None:
    with workplace() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCD_CACHE", str(folder / "cache"))
        root = folder / "set"
        root.mkdir()
        if is_whole:
            for name in (f"{c}/{i}.png" for c in "ab" for i in range(3)):
                plant(os.fsencode(root), name.encode().split(b"/"), "image")
        for names, kind in entries:
            plant(os.fsencode(root), names, kind)
        promise(
            "image folders",
            lambda: load_dataset("./set", skip_bad_images=skip, image_size=8, report=lambda line: None),
            folder / "cache",
        )


def test_links_that_multiply_end(tmp_path: Path) -> None:
    """30 folders that each link to the next one twice: 2^30 ways, no loop."""
    root = classes(tmp_path / "set", "a", "b", count=3)
    farm = tmp_path / "farm"
    for i in range(31):
        (farm / str(i)).mkdir(parents=True)
    for i in range(30):
        for name in ("x", "y"):
            (farm / str(i) / name).symlink_to(farm / str(i + 1))
    (root / "a" / "more").symlink_to(farm / "0")
    with pytest.raises(UserError, match="by 100 paths") as error:
        load_dataset(str(root))
    one_line(error)


# --- archives

member_names = st.one_of(
    st.sampled_from(
        [
            "a",
            "b/c",
            "../out",
            "/abs",
            "b/../../out",
            "a/./b",
            "x" * 300,
            "d/" * 30 + "x",
            "",
            ".",
            "a\0b",
            "..\\x",
            "C:x",
        ]
    ),
    texts,
)
TAR_TYPES = [tarfile.REGTYPE] * 4 + [
    tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE,
    tarfile.GNUTYPE_SPARSE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, tarfile.XGLTYPE, b"?",
]  # fmt: skip
members = st.lists(
    st.tuples(member_names, st.sampled_from(TAR_TYPES), st.sampled_from([0, 5, 5, 3000, 2**20, 2**33])), max_size=5
)


def tar_of(entries: list[tuple[str, bytes, int]], packed: bool) -> bytes:
    """Headers say what they like; at most 5,000 bytes follow each."""
    out = io.BytesIO()
    for name, kind, size in entries:
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mode = kind, size, "../../etc/passwd", 0o4777
        body = (b"20 path=../out/here\n" * 200)[: min(size, 5000)]
        out.write(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + body + bytes(-len(body) % 512))
    out.write(bytes(1024))
    return gzip.compress(out.getvalue(), 1) if packed else out.getvalue()


def zip_of(entries: list[tuple[str, bytes, int]], packed: bool) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as opened:
        for name, kind, size in entries:
            info = zipfile.ZipInfo("x")
            info.filename, info.compress_type = name, opened.compression
            modes = {tarfile.SYMTYPE: stat.S_IFLNK, tarfile.CHRTYPE: stat.S_IFCHR, tarfile.FIFOTYPE: stat.S_IFIFO}
            info.external_attr = (modes.get(kind, stat.S_IFREG) | 0o4777) << 16
            opened.writestr(info, bytes(min(size, 3 * 2**20)))
    return out.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
@fuzz(60)
@given(st.sampled_from(["tar", "tar.gz", "zip", "zip deflated"]), members, edits | st.just([]))
def test_archives(kind: str, entries: Any, changes: Any) -> None:
    try:
        content = (tar_of if kind.startswith("tar") else zip_of)(entries, kind in ("tar.gz", "zip deflated"))
    except (ValueError, UnicodeError):  # a name that no header can hold
        content = bytes(1024)
    with workplace() as folder:
        (folder / "cache").mkdir()
        path = folder / "x.archive"
        path.write_bytes(edited(content, changes))
        promise(f"archives, {kind}", lambda: archive.extract(path, folder / "cache", max_bytes=10**6), folder / "cache")
        inside = list((folder / "cache").rglob("*"))
        assert all(entry.is_dir() or entry.is_file() for entry in inside)
        assert not any(entry.is_symlink() or entry.stat().st_mode & 0o7000 for entry in inside)
        assert sum(entry.stat().st_size for entry in inside if entry.is_file()) <= 10**6
        assert {entry.name for entry in folder.iterdir()} == {"cache", "x.archive"}


# --- CIFAR and Tiny-ImageNet

BATCH = {b"data": np.zeros((3, 3072), np.uint8), b"labels": [0, 1, 2], b"filenames": [b"x"]}
PICKLES = [pickle.dumps(BATCH, protocol=p) for p in (2, 3, 4, 5)]
SMALL_PICKLES = [pickle.dumps(BATCH | {b"data": np.zeros((1, 8), np.uint8)}, protocol=p) for p in (3, 4)]
CODES = [code for code in map(pickle.__dict__.get, dir(pickle)) if isinstance(code, bytes) and len(code) == 1]
PIECES = [
    b"cos\nmkdir\n", b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"cnumpy.core.multiarray\n_reconstruct\n", b"}", b"(",
    b"]", b"K\x01", b"U\x08executed", b"C\x04data", b"r\xff\xff\xff\xff",
    b"\x96" + b"\xff" * 5 + b"\0\0\0", b"\x8e" + b"\xff" * 5 + b"\0\0\0",
]  # fmt: skip
programs = st.lists(st.sampled_from(CODES) | st.sampled_from(PIECES) | st.binary(max_size=4), max_size=12)


@fuzz(60)
@given(
    st.sampled_from([*PICKLES, *SMALL_PICKLES]) | programs.map(lambda parts: b"\x80\x02" + b"".join(parts) + b"."),
    edits,
)
@example(b"\x80\x02r\xff\xff\xff\xff.", [])
@example(b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", [])
def test_cifar_pickles(content: bytes, changes: Any) -> None:
    with workplace() as folder:
        (folder / "data_batch_1").write_bytes(edited(content, changes, head=300))
        promise("CIFAR, pickles", lambda: _python(CIFAR10, folder / "data_batch_1"), folder / "nothing")


def test_a_pickle_of_lists_in_lists(tmp_path: Path) -> None:
    """A thousand bytes that would be an array of 10^12 numbers."""
    labels: list[Any] = [0] * 10
    for _ in range(11):
        labels = [labels] * 10
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(BATCH | {b"labels": labels}, protocol=3))
    with pytest.raises(UserError, match="is not a batch of CIFAR-10"):
        _python(CIFAR10, tmp_path / "data_batch_1")


@fuzz(30)
@given(edits)
def test_cifar_binaries(changes: Any) -> None:
    with workplace() as folder:
        (folder / "test_batch.bin").write_bytes(edited(bytes(3 * 3073), changes))
        pixels, labels = _binary(CIFAR10, folder / "test_batch.bin", 3)
        assert len(pixels) == len(labels) <= 4
        promise("CIFAR, binaries", lambda: load_dataset("cifar10", data_root=".", report=lambda line: None), folder)


LINES = "".join(f"val_{i}.JPEG\tn0{i % 2}\t0\t0\t1\t1\n" for i in range(4)).encode()


@fuzz(40, cost=2)
@given(
    st.sampled_from([LINES, b""]) | st.binary(max_size=99) | texts.map(lambda t: t.encode("utf-8", "replace")),
    edits,
    st.booleans(),
)
def test_tiny_imagenet_lists(content: bytes, changes: Any, names_too: bool) -> None:
    with workplace() as folder:
        for name in [
            *(f"train/n0{c}/images/{i}.JPEG" for c in range(2) for i in range(3)),
            *(f"val/images/val_{i}.JPEG" for i in range(4)),
        ]:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).touch()
        (folder / "val/val_annotations.txt").write_bytes(LINES if names_too else edited(content, changes))
        if names_too:
            (folder / "words.txt").write_bytes(edited(content, changes))
        promise("Tiny-ImageNet, lists", lambda: tiny_imagenet.listing(folder), folder / "nothing")

"""The decoded copy of a data set is written once, whole or not at all."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from mcd_cli.errors import UserError
from support.pictures import Loading, classes, picture


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


def test_the_second_start_decodes_nothing(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    assert any("decoding" in line for line in load.said)
    load.said.clear()
    second = load(root)
    assert load.said == []
    assert torch.equal(first.images, second.images)
    assert (first.fingerprint, first.mean) == (second.fingerprint, second.mean)
    assert len(list((load.cache / "datasets").glob("*/images.npy"))) == 1
    assert not list((load.cache / "datasets").glob("*tmp*"))


def test_a_changed_file_is_read_again(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    status = (root / "a" / "000.png").stat()
    picture(4).save(root / "a" / "000.png")
    os.utime(root / "a" / "000.png", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert not torch.equal(load(root).images, first.images)


@pytest.mark.parametrize("end", [-1, 0])
@pytest.mark.parametrize("name", ["images.npy", "labels.npy", "meta.json"])
def test_a_torn_copy_is_never_used(load: Loading, tmp_path: Path, name: str, end: int) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    images = first.images.clone()  # the file is about to be torn under it
    (path,) = (load.cache / "datasets").glob(f"*/{name}")
    path.write_bytes(path.read_bytes()[:end])
    again = load(root)
    assert torch.equal(again.images, images)
    assert again.fingerprint == first.fingerprint


def test_what_a_killed_writer_left_is_removed(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b")
    load(root)
    (folder,) = (path for path in (load.cache / "datasets").iterdir() if path.is_dir())
    folder.rename(f"{folder}.tmp-left")
    load(root)
    assert [path for path in (load.cache / "datasets").iterdir() if path.is_dir()] == [folder]


def test_many_first_starts_at_once_agree(load: Loading, tmp_path: Path) -> None:
    root = classes(tmp_path / "set", "a", "b", count=30)
    with ThreadPoolExecutor(4) as pool:
        loaded = list(pool.map(load, [root] * 4))
    assert len({data.fingerprint for data in loaded}) == 1
    assert sum("decoding" in line for line in load.said) == 1


def test_an_unwritable_cache_is_told(load: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "set", "a", "b")
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCD_CACHE", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match="set MCD_CACHE"):
        load(root)


def test_the_cached_copy_holds_no_pickle(load: Loading, tmp_path: Path) -> None:
    load(classes(tmp_path / "set", "a", "b"))
    (folder,) = (path for path in (load.cache / "datasets").iterdir() if path.is_dir())
    for path in folder.glob("*.npy"):
        np.load(path, allow_pickle=False)
    assert json.loads((folder / "meta.json").read_text())["classes"] == ["a", "b"]

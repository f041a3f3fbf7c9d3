"""Data that change or vanish while they are decoded, in the cache and during a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mcd_cli.data import load_dataset, memory
from mcd_cli.errors import Interrupted, UserError
from support.pictures import Loading, classes, one_line, picture
from support.runs import go_on, signal_at, tiny_recipe, train


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Loading:
    return Loading(tmp_path / "cache", monkeypatch)


def cached_images(cache: Path) -> Path:
    (path,) = (cache / "datasets").glob("*/images.npy")
    return path


def test_a_run_is_not_touched_by_what_becomes_of_its_data(load: Loading, tmp_path: Path) -> None:
    """In the middle of a run the cached copy is cut to nothing and the images vanish: the same weights to the bit.

    (A file that is memory-mapped and cut would end the process with SIGBUS.) Going on without the images is refused.
    """
    root = classes(tmp_path / "set", "a", "b", count=30)
    recipe = tiny_recipe(dataset=str(root), batch_size=8, epochs=1, students=["resnet10-xxxs"], teacher={"epochs": 1})
    undisturbed = train(recipe, tmp_path / "one")

    def destroy(event: object) -> None:
        if type(event).__name__ == "StepEnded" and root.exists():
            os.truncate(cached_images(load.cache), 0)
            root.rename(tmp_path / "gone")

    assert [s.sha256 for s in train(recipe, tmp_path / "two", destroy).students] == [
        s.sha256 for s in undisturbed.students
    ]
    (tmp_path / "gone").rename(root)
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "three", signal_at("distill", 2))
    root.rename(tmp_path / "gone")
    with pytest.raises(UserError, match="does not exist"):
        go_on(tmp_path / "three")
    (tmp_path / "gone").rename(root)
    picture(5).save(root / "a" / "000.png")
    with pytest.raises(UserError, match="the run's data set has changed"):
        go_on(tmp_path / "three")


def test_a_cached_copy_that_was_altered_is_decoded_again(load: Loading, tmp_path: Path) -> None:
    """Of the same size and with the same date: only its fingerprint tells."""
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    path = cached_images(load.cache)
    content, status = bytearray(path.read_bytes()), path.stat()
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    again = load(root)
    assert torch.equal(again.images, first.images)
    assert any("damaged" in line for line in load.said)


@pytest.mark.parametrize("what", ["changes", "vanishes"])
def test_an_image_that_changes_while_it_is_read_is_told(
    load: Loading, tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = classes(tmp_path / "set", "a", "b")
    last = root / "b" / "009.png"

    def report(line: str) -> None:
        if "decoding" in line:
            last.unlink()
            if what == "changes":
                picture(1).save(last)

    with pytest.raises(
        UserError, match=r"'b/009\.png'.*" + ("changed" if what == "changes" else "No such file")
    ) as error:
        load_dataset(str(root), report=report)
    one_line(error)


def test_what_is_larger_than_memory_is_mapped(load: Loading, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = classes(tmp_path / "set", "a", "b")
    first = load(root)
    monkeypatch.setattr("mcd_cli.data.memory.available", lambda: 100)
    mapped = load(root)
    assert torch.equal(mapped.images, first.images)
    assert "images.npy" in Path("/proc/self/maps").read_text()


def test_available_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A container's limit counts where it is lower than the machine's."""
    assert 2**20 < memory.available() < 2**50
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    assert memory.available() == 2_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available() > 2_000_000

"""Cached teacher logits: the teacher runs once for each view, and the cached logits are its own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mcd_cli.data.cache import cache_root
from mcd_cli.engine import teacher_logits
from mcd_cli.errors import Interrupted
from mcd_cli.ladder.folder import RunFolder
from support.runs import finished, go_on, make_run, signal_at, teachers_passes, tiny_recipe, train


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, uninterrupted: Path) -> list[int]:
    """How many images each call of a teacher takes, during training (its own is in the cache by now)."""
    return teachers_passes(monkeypatch)


def weights(out: Path) -> torch.Tensor:
    from safetensors.torch import load_file

    files = sorted((out / "students").iterdir())
    return torch.cat([value.double().flatten() for file in files for value in load_file(file).values()])


def test_the_teacher_sees_each_view_once(tmp_path: Path, seen: list[int]) -> None:
    """Two views, three epochs: 2 x the training images; the next method and seed find them."""
    recipe = tiny_recipe(epochs=3, method="kd", teacher={"views": 2}, augment={"seed": 5})
    train(recipe, tmp_path / "kd")
    with RunFolder.create(str(tmp_path / "x"), recipe) as folder:
        num_train = len(make_run(recipe, folder).dataset.train)
    assert sum(seen) == 2 * num_train
    seen.clear()
    others = [{"method": "mc-distil"}, {"method": "ce"}, {"method": "kd", "warm_start": {"epochs": 0}}]
    for i, changes in enumerate(others):
        train(tiny_recipe(epochs=3, teacher={"views": 2}, augment={"seed": 5}, **changes), tmp_path / str(i))
    train(tiny_recipe(epochs=3, method="kd", teacher={"views": 1}, augment={"seed": 5}), tmp_path / "fewer")
    assert sum(seen) == 0
    train(tiny_recipe(epochs=3, method="kd", teacher={"views": 3}, augment={"seed": 5}), tmp_path / "more")
    assert sum(seen) == num_train


def test_stored_is_what_the_teacher_says(tmp_path: Path, seen: list[int]) -> None:
    """As many views as epochs are the images of a fresh augmentation: the same training but for float16."""
    fresh, stored = tmp_path / "fresh", tmp_path / "stored"
    train(tiny_recipe(), fresh)
    train(tiny_recipe(teacher={"views": 2}), stored)
    difference = (weights(stored) - weights(fresh)).norm() / weights(fresh).norm()
    assert 0 < difference < 1e-2
    train(tiny_recipe(teacher={"views": 1}), tmp_path / "one")
    assert (weights(tmp_path / "one") - weights(fresh)).norm() / weights(fresh).norm() > 3 * difference


def test_rows_are_by_sample_id(tmp_path: Path) -> None:
    """A batch of the loader, augmented for its epoch and shown to the teacher, against the table."""
    recipe = tiny_recipe(teacher={"views": 2}, augment={"seed": 7})
    train(recipe, tmp_path / "first")  # trains the teacher of that augmentation
    with RunFolder.create(str(tmp_path / "x"), recipe) as folder:
        run = make_run(recipe, folder)
    assert run.teacher is not None
    table = teacher_logits.TeacherLogits(run.teacher, run.loader, run.hardware, 2, lambda event: None)
    for epoch in (0, 3):
        batch = next(iter(run.loader.epoch(epoch, views=2)))
        said = run.teacher.network(batch.images)
        torch.testing.assert_close(table(epoch)[batch.ids].float(), said, rtol=1e-3, atol=1e-3)


def test_resume_with_views(tmp_path: Path, uninterrupted: Path) -> None:
    recipe = tiny_recipe(epochs=3, teacher={"views": 2})
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", 6))
    for file in (cache_root() / "views").glob("*.npy"):
        file.unlink()  # the cache may be emptied at any time
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")


def test_a_damaged_view_is_computed_again(tmp_path: Path, seen: list[int]) -> None:
    recipe = tiny_recipe(teacher={"views": 2}, augment={"seed": 11})
    train(recipe, tmp_path / "first")
    stored = sorted((cache_root() / "views").glob("*.npy"), key=lambda path: path.stat().st_mtime)[-2:]
    stored[0].write_bytes(stored[0].read_bytes()[:-100])
    content = bytearray(stored[1].read_bytes())
    content[-4000:] = bytes(4000)
    stored[1].write_bytes(content)
    seen.clear()
    train(recipe, tmp_path / "again")
    assert len(seen) > 0
    assert finished(tmp_path / "again") == finished(tmp_path / "first")

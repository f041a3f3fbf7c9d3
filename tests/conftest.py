"""Fixtures of all tests: one thread, a cache of their own, and runs that are trained once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from mcd_cli.cli.export import export
from mcd_cli.registry import Row, Table
from support.runs import Register, tiny_recipe, train

torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCD_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def register() -> Iterator[Register]:
    """Adds rows to a table for the length of a test."""
    with ExitStack() as stack:

        def add(table: Table[Any], name: str, row: Row) -> None:
            table.register(name, row)
            stack.callback(table.unregister, name)

        yield add


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one student that tells digits apart, exported as float32 and as int8; copy it to change it."""
    recipe = tiny_recipe(
        image_size=16, students=["resnet10-xxs"], method="ce", epochs=8, batch_size=64, warm_start={"epochs": 0}
    )
    folder = tmp_path_factory.mktemp("deployed") / "run"
    train(recipe, folder)
    export(str(folder), int8=True, max_drop=100)  # what int8 loses depends on the processor
    return folder


@pytest.fixture(scope="session")
def uninterrupted(cache: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny run, never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny_recipe(), out)
    return out


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with a recipe of a few seconds, tiny.toml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(tiny_recipe().to_toml(), encoding="utf-8")
    return tmp_path

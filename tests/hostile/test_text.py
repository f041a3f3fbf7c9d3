"""Hostile text: recipes, settings, quantities, student lists, manifests."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import example, given
from hypothesis import strategies as st

from mcd_cli import quantities
from mcd_cli.cli.select import select
from mcd_cli.data import find_folder
from mcd_cli.errors import LONGEST, UserError
from mcd_cli.ladder.budget import Budget
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.manifest import find_run, load_ladder
from mcd_cli.norms import parse_norm
from mcd_cli.recipe.loading import MAX_BYTES, load_recipe, parse_recipe, parse_setting
from mcd_cli.recipe.schema import Recipe, name_students
from mcd_cli.reporting.console import talk
from mcd_cli.reporting.ladder_table import caption, ladder_table
from mcd_cli.reporting.model_card import calibration, to_markdown
from support import ROOT
from support.hostile import (
    NASTY_NUMBERS,
    check,
    edited,
    edits,
    fuzz,
    promise,
    scalars,
    texts,
    tree_edits,
    trees,
    with_tree_edits,
    workplace,
)
from support.manifests import MANIFEST
from support.runs import tiny_recipe

TINY = tiny_recipe().model_dump(mode="json", exclude_none=True)
SHIPPED = [path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.toml"))]
KEYS = [
    *TINY,
    *(f"{key}.{inner}" for key, value in TINY.items() if isinstance(value, dict) for inner in value),
    "extends",
]


def use(recipe: Recipe) -> None:
    """What every command does with a recipe before it trains."""
    assert Recipe.model_validate(recipe.model_dump()) == recipe
    recipe.sha256()
    assert parse_recipe(json.loads(recipe.model_dump_json(exclude_none=True))) == recipe
    find_folder(recipe.dataset, recipe.data_root)
    folder = RunFolder.create("new", recipe)
    folder.discard()


@fuzz(60)
@given(st.sampled_from(SHIPPED) | st.binary(max_size=200), edits)
@example(b"seed = " + b"9" * 5000, [])
@example(b"x = " + b"[" * 3000, [])
@example(b"a" + b".a" * 20_000 + b" = 1", [])
@example(b'extends = "' + b"a" * 300 + b'"', [])
@example(b'extends = "../here/r"', [])
@example(b'extends = "a\\u0000b"', [])
@example(b'extends = "~no-such-user/x"', [])
@example(b'dataset = "a\\u0000b"', [])
@example(b'dataset = "~no-such-user/x"', [])
@example(b"seed = 1" + b"\n#" * MAX_BYTES, [])
def test_recipe_bytes(content: bytes, changes: Any) -> None:
    with workplace() as folder:
        (folder / "here").mkdir()
        (folder / "here/r.toml").write_bytes(edited(content, changes))
        promise("recipe files", lambda: use(load_recipe("here/r.toml", {})), folder)


@fuzz(80)
@given(tree_edits, st.booleans())
def test_recipe_structure(changes: Any, as_file: bool) -> None:
    content = with_tree_edits(json.loads(json.dumps(TINY)), changes)
    with workplace() as folder:
        if as_file:
            try:
                (folder / "r.toml").write_bytes(tomli_w.dumps(content).encode())
            except (TypeError, ValueError):  # None, surrogates, integers of too many digits: no TOML
                as_file = False
        promise("recipes", lambda: use(load_recipe("r.toml", {}) if as_file else parse_recipe(content)), folder)


@fuzz(80)
@given(
    st.lists(
        st.tuples(st.sampled_from(KEYS) | texts, st.sampled_from(["=", "", " = "]), texts | scalars.map(repr)),
        max_size=3,
    )
)
@example([("seed", "=", "9" * 5000)])
@example([("seed", "=", "[" * 5000)])
@example([("seed", "=", "3\nepochs = 4")])
@example([(".".join("a" * 5000), "=", "3")])
def test_settings(parts: list[tuple[str, str, str]]) -> None:
    def read() -> None:
        settings = dict(parse_setting("".join(part)) for part in parts)
        use(load_recipe("digits", settings, dataset=settings.get("dataset")))

    with workplace() as folder:
        promise("--set", read, folder)


@fuzz(100)
@given(texts | st.from_regex(r"[0-9.eE+-]{1,12} ?[a-zA-Zµ%]{0,4}") | st.sampled_from(NASTY_NUMBERS))
def test_quantities(text: Any) -> None:
    for parse in (quantities.count, quantities.size, quantities.duration, quantities.accuracy, quantities.interval):
        value = promise("quantities", lambda parse=parse: parse(text))  # type: ignore[misc]
        if isinstance(value, int | float):
            assert 0 <= value <= 10**21
            for show in (quantities.show_count, quantities.show_size, quantities.show_ms):
                show(value)
    promise("quantities", lambda: Budget.parse(max_macs=text, min_accuracy=text))


@fuzz(60)
@given(st.lists(texts | st.sampled_from(["resnet10-s", "a=resnet10-s", "=", "a="]), max_size=4))
def test_students_and_norms(parts: list[str]) -> None:
    with workplace() as folder:
        promise(
            "--students",
            lambda: use(parse_recipe(TINY | {"students": name_students(",".join(parts).split(","))})),
            folder,
        )
    promise("--teacher-norm", lambda: parse_norm(",".join(parts)))
    promise("--teacher-norm", lambda: parse_norm("/".join(parts)))


# --- manifests


def use_ladder(folder: Path) -> None:
    """What the commands do with a manifest."""
    ladder = load_ladder(folder)
    select(folder, max_macs="16M", max_latency="1ms", quiet=False, json_output=True)
    for student in ladder.students:
        try:
            student.load()
        except UserError as error:
            check(error)
    (folder / "again").mkdir()
    ladder.save(folder / "again")
    assert load_ladder(folder / "again") == ladder
    talk().print(ladder_table(ladder, talk()))
    to_markdown("", [calibration(ladder)])
    caption(ladder)


@fuzz(80, cost=2)
@given(tree_edits)
@example([([9, 0, 4], "replace", 10**400)])
@example([([8, 0, 7, 0], "replace", 10**400)])
def test_manifest_structure(changes: Any) -> None:
    with workplace() as folder:
        document = with_tree_edits(json.loads(json.dumps(MANIFEST)), changes)
        (folder / "ladder.json").write_text(json.dumps(document, allow_nan=True), encoding="utf-8")
        promise("ladder.json", lambda: use_ladder(folder), folder)
        promise("ladder.json", lambda: find_run(under=folder.parent), folder)


@fuzz(60, cost=2)
@given(
    st.just(json.dumps(MANIFEST).encode()) | st.binary(max_size=99) | trees.map(lambda t: json.dumps(t).encode()), edits
)
@example(b"[" * 100_000, [])
@example(b'{"schema": ' + b"9" * 5000 + b"}", [])
@example(json.dumps(MANIFEST).replace("toy", "\\ud800").encode(), [])
def test_manifest_bytes(content: bytes, changes: Any) -> None:
    with workplace() as folder:
        (folder / "ladder.json").write_bytes(edited(content, changes))
        promise("ladder.json", lambda: use_ladder(folder), folder)


@pytest.mark.parametrize("key", ["params", "macs", "bytes"])
def test_a_count_that_no_float_can_show(tmp_path: Path, key: str) -> None:
    document = json.loads(json.dumps(MANIFEST))
    document["students"][0][key] = 10**400
    (tmp_path / "ladder.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="must be at most"):
        load_ladder(tmp_path)


def test_a_manifest_is_never_waited_for(tmp_path: Path) -> None:
    """A pipe, a device without end, a file of a gigabyte that takes no space."""
    path = tmp_path / "ladder.json"
    for make in (lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero")):
        make()
        with pytest.raises(UserError, match="not a regular file"):
            load_ladder(tmp_path)
        path.unlink()
    with path.open("wb") as file:
        file.truncate(2**30)
    with pytest.raises(UserError, match="more than"):
        load_ladder(tmp_path)


def test_what_a_terminal_would_obey_is_escaped() -> None:
    error = UserError("a\nb\x1b[31m\ud800\u202e" + "x" * 10 * LONGEST)
    assert str(error).startswith(r"a\nb\x1b[31m\ud800\u202exxx")
    assert len(str(error)) < LONGEST + 100


HOSTILE_FOLDERS: dict[str, Callable[[Path, Path], object]] = {
    "metrics": lambda run, outside: (run / "metrics.jsonl").symlink_to(outside / "precious"),
    "checkpoint": lambda run, outside: (run / "checkpoint").symlink_to(outside),
    "students": lambda run, outside: (run / "students").symlink_to(outside),
    "log": lambda run, outside: (run / "error.log").symlink_to(outside / "precious"),
    "pipe": lambda run, outside: os.mkfifo(run / "metrics.jsonl"),
}


@pytest.mark.parametrize("kind", HOSTILE_FOLDERS)
def test_a_run_folder_that_leads_elsewhere_is_not_written(tmp_path: Path, kind: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/precious").write_text("mine")
    RunFolder.create(str(tmp_path / "run"), tiny_recipe()).close()
    (tmp_path / "run/metrics.jsonl").unlink()
    HOSTILE_FOLDERS[kind](tmp_path / "run", tmp_path / "outside")
    with pytest.raises(UserError, match="remove it"):
        RunFolder.open(str(tmp_path / "run"))
    assert [path.name for path in (tmp_path / "outside").iterdir()] == ["precious"]
    assert (tmp_path / "outside/precious").read_text() == "mine"

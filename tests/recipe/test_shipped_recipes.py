"""The shipped recipes: each block of the paper's tables, the budgets of the short ones, the overlays."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mcd_cli.recipe.loading import load_recipe, parse_recipe, read_changes, recipe_names, recipes_folder
from mcd_cli.recipe.schema import CoordinatorSection, Recipe

FOLDER = recipes_folder()
OVERLAYS = sorted(path for kind in ("controls", "ablations") for path in (FOLDER / kind).rglob("*.toml"))
TABLE_1 = ["resnet10-l", "resnet10", "resnet18", "resnet34"]
GROUP = {f"resnet10-{size}" for size in ("xxxs", "xxs", "xs", "s", "m")}
TABLE_2 = {
    "resnet32x4": {"resnet8x4", "shufflenet-v2", "wrn-16-2", "mobilenet-v2x2"},
    "wrn-40-2": {"resnet8x4", "shufflenet-v2", "wrn-40-1", "mobilenet-v2x2"},
}


def overlay(name: str) -> dict[str, Any]:
    (path,) = (p for p in OVERLAYS if p.relative_to(FOLDER).with_suffix("").as_posix().partition("/")[2] == name)
    return read_changes(path)


def laid_over(base: str, name: str) -> Recipe:
    return load_recipe(base, overlay(name))


@pytest.mark.parametrize("dataset", ["cifar100", "tinyimagenet"])
@pytest.mark.parametrize("teacher", [*TABLE_1, *TABLE_2])
def test_every_block_of_tables_1_2_and_4(dataset: str, teacher: str) -> None:
    recipe = load_recipe(f"{dataset}-{teacher}", {})
    assert (recipe.dataset, recipe.teacher.arch) == (dataset, teacher)
    assert set(recipe.students.values()) == TABLE_2.get(teacher, GROUP)
    common = {"batch_size", "epochs", "warm_start", "optimizer", "schedule", "augment", "distill"}
    assert recipe.model_dump(include=common) == load_recipe(dataset, {}).model_dump(include=common)
    assert recipe.coordinator == CoordinatorSection()
    assert (recipe.batch_size, recipe.epochs, recipe.optimizer.lr, recipe.optimizer.momentum) == (400, 500, 0.05, 0.95)


@pytest.mark.parametrize("name", ["digits", "cifar10", "cifar100", "tinyimagenet", "folder", "cifar100-gpu"])
def test_by_default_c_net_sees_losses_and_every_image_weighs_the_same(name: str) -> None:
    section = load_recipe(name, {}).coordinator
    assert (section.arch, section.normalise, section.total, section.lr) == ("losses", "image", None, 0.005)


@pytest.mark.parametrize(
    ("name", "num_train", "fewest"), [("cifar100-short", 45_000, 500), ("tinyimagenet-short", 90_000, 500)]
)
def test_short_recipes_make_enough_updates(name: str, num_train: int, fewest: int) -> None:
    recipe = load_recipe(name, {})
    steps = recipe.epochs * (num_train // recipe.batch_size)
    assert -(-steps // recipe.coordinator.every) >= fewest
    assert (recipe.dataset, recipe.teacher.arch) == (name.removesuffix("-short"), "resnet10-l")
    assert set(recipe.students) == GROUP - {"resnet10-m", "resnet10-xxxs"}


def test_the_recipe_for_a_gpu() -> None:
    recipe = load_recipe("cifar100-gpu", {})
    assert (recipe.warm_start.epochs, recipe.epochs, recipe.coordinator.every) == (15, 40, 4)
    assert (recipe.dataset, recipe.teacher.arch, set(recipe.students)) == ("cifar100", "resnet10-l", GROUP)


@pytest.mark.parametrize("path", OVERLAYS, ids=lambda path: path.stem)
@pytest.mark.parametrize("base", ["digits", "cifar100-gpu"])
def test_an_overlay_changes_something_and_nothing_else(path: Path, base: str) -> None:
    changes = read_changes(path)
    before = load_recipe(base, {})
    after = load_recipe(base, changes)
    for key in Recipe.model_fields:
        assert (getattr(after, key) != getattr(before, key)) <= (key in changes)
    assert after != before or path.parent.name == "ablations"  # at its end, Figure 2 is the whole ladder


def test_overlays_are_not_runnable_recipes() -> None:
    assert len(OVERLAYS) >= 25
    assert not {path.stem for path in OVERLAYS} & set(recipe_names())


def test_the_controls_are_what_they_say() -> None:
    base = "cifar100"
    assert laid_over(base, "kd-total-2").distill.total == 2
    assert laid_over(base, "kd-total-3").distill.total == 3
    assert laid_over(base, "constant-half").distill.constants == (0.5, 0.5, 0.5)
    assert laid_over(base, "constant-one").distill.constants == (1, 1, 1)
    for control in ("mean", "shuffle", "frozen"):
        assert laid_over(base, f"mc-distil-{control}").coordinator.control == control
    assert not laid_over(base, "mc-distil-alone").coordinator.shared
    assert laid_over(base, "mc-distil-scalar").coordinator.arch == "scalar"
    assert laid_over(base, "kd-train-val").train_on_val
    for suffix in ("", "-mean", "-shuffle", "-scalar", "-alone"):
        section = laid_over(base, f"mc-distil-normalised{suffix}").coordinator
        own = {"normalise": "mean", "total": 3, "lr": 0.001, "arch": "scalar" if suffix == "-scalar" else "resnet10-s"}
        plain = laid_over(base, f"mc-distil{suffix}").coordinator if suffix else load_recipe(base, {}).coordinator
        assert section == plain.model_copy(update=own)
    assert laid_over(base, "mc-distil-paper").coordinator == CoordinatorSection()
    image = laid_over(base, "mc-distil-image").coordinator
    assert image.model_copy(update={"arch": "losses", "lr": 0.005}) == load_recipe(base, {}).coordinator
    assert laid_over(base, "teacher-50").teacher.unseen == 0.5
    grid = {(r.distill.lambda_, r.optimizer.lr) for r in (laid_over(base, f"kd-tuned/{p.stem}") for p in tuned())}
    assert len(grid) == len(tuned()) == 6
    assert (0.5, 0.05) in grid  # kd itself
    assert [laid_over(base, f"noise-{share}").label_noise for share in (20, 40)] == [0.2, 0.4]


def tuned() -> list[Path]:
    return [path for path in OVERLAYS if path.parent.name == "kd-tuned"]


def test_figure_2_adds_one_student_at_a_time() -> None:
    for way, first in (("growing", "resnet10-xxxs"), ("shrinking", "resnet10-m")):
        groups = [set(laid_over("cifar100-resnet10", f"{way}-{n}").students) for n in range(1, 6)]
        assert groups[0] == {first}
        assert groups[-1] == GROUP
        for n, (smaller, larger) in enumerate(pairwise(groups), 1):
            assert smaller < larger
            assert len(smaller) == n


def test_the_resolved_options_go_round(tmp_path: Path) -> None:
    recipe = parse_recipe({"method": "constant", "distill": {"constants": [1, 0.25, 2]}})
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    assert load_recipe(str(tmp_path / "r.toml"), {}) == recipe

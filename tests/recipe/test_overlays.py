"""Contenders of a comparison: methods and overlays by name, applied to one base recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from mcd_cli.comparison.plan import Plan, first_link_identity, identity
from mcd_cli.errors import UserError
from mcd_cli.recipe.loading import lay_over
from mcd_cli.recipe.overlays import Contender, contender_names, find_contenders
from support.runs import tiny_recipe


def overlay(folder: Path, name: str, content: str) -> str:
    path = folder / f"{name}.toml"
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_a_method_and_a_file_of_changes(tmp_path: Path) -> None:
    file = overlay(tmp_path, "mean", 'method = "mc-distil"\n[coordinator]\ncontrol = "mean"\n')
    base = tiny_recipe(method="ce")
    (method,), (laid,) = find_contenders("kd"), find_contenders(file)
    assert method.recipe(base, 4) == tiny_recipe(method="kd", seed=4)
    assert laid.name == "mean"
    assert laid.recipe(base, 4) == tiny_recipe(method="mc-distil", seed=4, coordinator={"control": "mean"})


def test_every_shipped_contender_is_found_and_fits() -> None:
    """A folder of overlays is all of them; what changes the base for all is an overlay, and says so."""
    base = tiny_recipe(students=["resnet10-m", "resnet10-s", "resnet10-xs", "resnet10-xxs"])
    assert "mc-distil" in contender_names()
    for name in contender_names():
        for contender in find_contenders(name):
            try:
                contender.recipe(base, 0)
            except UserError as error:
                assert f"--overlay {contender.name}" in str(error)  # noqa: PT017
                lay_over(base, contender.changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("label_noise = 0.2", "changes label_noise, which must be the same for all contenders.*--overlay odd"),
        ("[teacher]\narch = 'resnet10'", "changes teacher"),
        ("epoch = 3", r"unknown recipe key 'epoch'; did you mean epochs"),
    ],
)
def test_what_a_contender_may_not_change(tmp_path: Path, content: str, message: str) -> None:
    (contender,) = find_contenders(overlay(tmp_path, "odd", content))
    with pytest.raises(UserError, match=message):
        contender.recipe(tiny_recipe(), 0)


def test_names_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown method or overlay 'mc-dstil'; did you mean mc-distil"):
        find_contenders("mc-dstil")
    with pytest.raises(UserError, match="cannot be a contender's name"):
        find_contenders(overlay(tmp_path, "kd", ""))
    with pytest.raises(UserError, match="duplicate method kd"):
        Plan(tiny_recipe(), (Contender("kd"), Contender("kd")), (0,))


ONE = {"students": ["resnet10-xxs"]}


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ({"method": "kd"}, {"method": "kd", "coordinator": {"every": 9}}, True),
        ({"method": "ce"}, {"method": "ce", "distill": {"tau": 4.0}}, True),
        ({"method": "kd"}, {"method": "kd", "distill": {"tau": 4.0}}, False),
        ({"method": "kd"}, {"method": "kd", "train_on_val": True}, False),
        ({"method": "mc-distil"}, {"method": "mc-distil", "coordinator": {"every": 9}}, False),
        ({"method": "kd"}, {"method": "takd"}, False),
        ({"method": "kd", **ONE}, {"method": "takd", **ONE}, True),
        ({"method": "kd", **ONE}, {"method": "dgkd", "distill": {"normalise": True}, **ONE}, True),
        ({"method": "kd", **ONE}, {"method": "mc-distil", **ONE}, False),
        ({"method": "mc-distil"}, {"method": "mc-distil", "distill": {"lambda": 0.9}}, True),
        ({"method": "mc-distil"}, {"method": "mc-distil", "distill": {"tau": 4.0}}, False),
        ({"method": "mc-distil", **ONE}, {"method": "meta-distil", **ONE}, True),
        ({"method": "mc-distil"}, {"method": "mc-distil-nops"}, False),
        ({"method": "kd"}, {"method": "kd", "seed": 1}, False),
    ],
)
def test_what_is_the_same_by_definition(a: dict, b: dict, same: bool) -> None:
    assert (identity(tiny_recipe(**a)) == identity(tiny_recipe(**b))) is same


def test_a_chains_first_link_is_kd() -> None:
    kd = identity(tiny_recipe(method="kd"))
    assert first_link_identity(tiny_recipe(method="takd")) == kd
    assert first_link_identity(tiny_recipe(method="dgkd", distill={"drop": 0.5})) == kd
    assert first_link_identity(tiny_recipe(method="takd", distill={"lambda": 0.9})) != kd
    assert first_link_identity(tiny_recipe(method="rmc")) is None


def test_a_plan_survives_its_file(tmp_path: Path) -> None:
    file = overlay(tmp_path, "mean", 'method = "mc-distil"\n[coordinator]\ncontrol = "mean"\n')
    plan = Plan(tiny_recipe(), (*find_contenders("kd"), *find_contenders(file)), (3, 1))
    plan.save(tmp_path)
    assert Plan.load(tmp_path) == plan
    with pytest.raises(UserError, match="another batch_size"):
        Plan.load(tmp_path).refuse_other_base(Plan(tiny_recipe(batch_size=64), plan.contenders, plan.seeds))
    Plan.load(tmp_path).refuse_other_base(Plan(tiny_recipe(method="ce"), plan.contenders[:1], (7,)))
    (tmp_path / "comparison.toml").write_text("seeds = 3")
    with pytest.raises(UserError, match="cannot be read"):
        Plan.load(tmp_path)

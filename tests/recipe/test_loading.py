"""Recipes: the shipped ones load, overrides have an order, mistakes name the nearest key, TOML round trips."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mcd_cli.cli.distill import resolve
from mcd_cli.cli.options import DistillOptions
from mcd_cli.errors import UserError
from mcd_cli.recipe.loading import load_recipe, parse_recipe, parse_setting, recipe_names
from mcd_cli.recipe.schema import ADDED, Recipe, name_students


@pytest.mark.parametrize("name", recipe_names())
def test_every_shipped_recipe_loads_and_goes_round(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, {})
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    again = load_recipe(str(tmp_path / "r.toml"), {})
    assert again == recipe
    assert again.sha256() == recipe.sha256()


def test_the_papers_recipes_hold_the_papers_numbers() -> None:
    for name in ("cifar100", "tinyimagenet"):
        recipe = load_recipe(f"{name}-resnet10-l", {})
        assert recipe.dataset == name
        assert (recipe.batch_size, recipe.epochs, recipe.distill.tau) == (400, 500, 2.0)
        assert recipe.optimizer.model_dump() == {"lr": 0.05, "momentum": 0.95, "weight_decay": 1e-4, "nesterov": False}
        assert (recipe.coordinator.every, recipe.coordinator.unit, recipe.coordinator.arch) == (20, "step", "resnet32")
    assert load_recipe("tinyimagenet-resnet34", {}).teacher.arch == "resnet34"


def test_everything_goes_round(tmp_path: Path) -> None:
    recipe = parse_recipe(
        {
            "dataset": 'a "quoted" \\ folder/é',
            "students": {"z-big": "resnet10-m", "a_small": "resnet10-s"},
            "teacher": {"file": "t.pt", "norm": "half"},
            "distill": {"lambda": 0.25, "losses": ["ce", "kd:pooled", {"loss": "nckd", "tau": 3, "ramp": 0.0}]},
            "augment": {"seed": 2**62},
            "coordinator": {"normalise": "mean", "total": 1.0, "arch": "scalar"},
            "checkpoint": {"every": "20steps"},
            "label_noise": 1e-7,
            "student": {"a_small": {"weight_decay": 0.0, "total": 3.0}},
        }
    )
    (tmp_path / "r.toml").write_text(recipe.to_toml(), encoding="utf-8")
    again = load_recipe(str(tmp_path / "r.toml"), {})
    assert again == recipe
    assert list(again.students) == ["z-big", "a_small"]  # the order of the list is kept


def test_default_recipe_set_flag(tmp_path: Path) -> None:
    """Each beats the one before."""
    (tmp_path / "r.toml").write_text("seed = 1\nsplit_seed = 1\nbatch_size = 11\n[optimizer]\nlr = 1.0\n")
    asked = DistillOptions(
        recipe=str(tmp_path / "r.toml"),
        settings=["split_seed=2", "batch_size=12", "optimizer.momentum=0.5", "method=kd"],
        batch_size=13,
    )
    recipe = resolve(asked)
    assert (recipe.seed, recipe.split_seed, recipe.batch_size) == (1, 2, 13)
    assert (recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (1.0, 0.5, 1e-4)
    assert (recipe.method, recipe.precision) == ("kd", "auto")


@pytest.mark.parametrize(
    ("dataset", "expected"), [(None, "numbers"), ("cifar100", "cifar100"), ("./cifar100", "folder"), ("x/y", "folder")]
)
def test_without_a_name_the_data_sets_recipe(dataset: str | None, expected: str) -> None:
    asked = DistillOptions(dataset=dataset)
    changes = {} if dataset is None else {"dataset": dataset}
    assert resolve(asked) == load_recipe(expected, changes)
    by_set = DistillOptions(settings=[] if dataset is None else [f"dataset={dataset}"])
    assert resolve(by_set) == resolve(asked)


@pytest.mark.parametrize(
    ("teacher", "arch", "expected"),
    [
        ("resnet18", None, (None, "resnet18")),
        ("torchvision:resnet18", None, (None, "torchvision:resnet18")),
        ("r34.pt", None, ("r34.pt", None)),
        ("folder/r34", "resnet34", ("folder/r34", "resnet34")),
    ],
)
def test_teacher_is_a_file_or_an_architecture(teacher: str, arch: str | None, expected: tuple) -> None:
    section = resolve(DistillOptions(teacher=teacher, teacher_arch=arch)).teacher
    assert (section.file, section.arch) == expected


def test_one_students_settings_can_be_set() -> None:
    settings = ['students=["small=resnet10-xxs"]', "student.small.weight_decay=0", "student.small.total=2.5"]
    recipe = resolve(DistillOptions(settings=settings))
    with pytest.raises(UserError, match=r"'students.a.lr' does not exist; write student.a.lr"):
        resolve(DistillOptions(settings=['students=["a=resnet10-xxs"]', "students.a.lr=1.0"]))
    assert recipe.student["small"].model_dump() == {"lr": None, "weight_decay": 0.0, "total": 2.5}


def test_an_existing_file_is_a_file_whatever_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("resnet18").touch()
    assert resolve(DistillOptions(teacher="resnet18")).teacher.file == "resnet18"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "unknown recipe key 'epoch'; did you mean epochs"),
        ({"coordinator": {"evry": 3}}, "'coordinator.evry'; did you mean coordinator.every"),
        ({"distill": {"lamda": 0.5}}, "did you mean distill.lambda"),
        ({"method": "mcdistil"}, "unknown method 'mcdistil'; did you mean mc-distil"),
        ({"students": ["resnet10-z"]}, "did you mean resnet10-"),
        ({"teacher": {"arch": "resnet45"}}, "did you mean resnet"),
        ({"epochs": "3"}, "epochs: input should be a valid integer, got '3'"),
        ({"epochs": True}, "epochs: "),
        ({"epochs": 0}, "epochs: input should be greater than or equal to 1, got 0"),
        ({"seed": -1}, "seed: "),
        ({"seed": 2**63}, "seed: "),
        ({"optimizer": {"lr": float("nan")}}, "optimizer.lr: "),
        ({"optimizer": {"lr": float("inf")}}, "optimizer.lr: "),
        ({"optimizer": 3}, "optimizer: this must be a table, got 3"),
        ({"optimizer": {"nesterov": True, "momentum": 0.0}}, "nesterov needs momentum"),
        ({"students": []}, "students: "),
        ({"students": {"a": {"lr": 0.1}}}, "its own settings go into the table student.NAME"),
        (
            {"augment": {"cutmix": 1.0}, "teacher": {"arch": "resnet18", "views": 4}},
            "augment.cutmix: images mixed anew",
        ),
        ({"student": {"resnet10-xxz": {"lr": 0.1}}}, "'student.resnet10-xxz'; did you mean student.resnet10-xx"),
        ({"student": {"resnet10-s": {"Lr": 0.1}}}, "'student.resnet10-s.Lr'; did you mean student.resnet10-s.lr"),
        (
            {"students": ["lr=resnet10-s"], "student": {"lr": {"Lr": 0.1}}},
            "'student.lr.Lr'; did you mean student.lr.lr",
        ),
        ({"student": {"resnet10-s": {"lr": 0}}}, "student.resnet10-s.lr: "),
        ({"student": {"resnet10-s": 3}}, "student.resnet10-s: this must be a table, got 3"),
        ({"student": 3}, "student: this must be a table, got 3"),
        ({"students": [["a"]]}, "ARCH or NAME=ARCH"),
        ({"students": ["Big=resnet10-m"]}, "'Big' is not a valid student name"),
        ({"students": ["teacher=resnet10-m"]}, "reserved for the teacher"),
        ({"teacher": {}}, "teacher: set a file or an arch"),
        ({"teacher": {"arch": "resnet18", "norm": "half"}}, "norm applies only to a teacher file"),
        ({"coordinator": {"total": 1.0}}, "total applies only with"),
        ({"checkpoint": {"every": "soon"}}, "'soon' is not an interval"),
    ],
)
def test_mistakes_are_told_in_one_line(content: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        parse_recipe(content)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a=3", ("a", 3)),
        ("a.b = 0.5", ("a.b", 0.5)),
        ("a=true", ("a", True)),
        ('a=["x", "y=z"]', ("a", ["x", "y=z"])),
        ("a=word", ("a", "word")),
        ("a=20steps", ("a", "20steps")),
        ("a=b=c", ("a", "b=c")),
        ("a=", ("a", "")),
    ],
)
def test_set_takes_toml_values_and_bare_words(text: str, expected: tuple[str, Any]) -> None:
    assert parse_setting(text) == expected


@pytest.mark.parametrize("text", ["", "a", "=3", ".a=3", "a.=3", "a..b=3", " =3"])
def test_set_without_key_or_value(text: str) -> None:
    with pytest.raises(UserError, match="--set takes key=value"):
        parse_setting(text)


@pytest.mark.parametrize("value", [[1], {"a": 1}, 3])
def test_a_data_set_that_is_no_name(value: object) -> None:
    with pytest.raises(UserError, match="recipe key dataset"):
        load_recipe(None, {"dataset": value}, dataset=value)


def test_students() -> None:
    assert name_students(["resnet10-s", " big = resnet10-m "]) == {"resnet10-s": "resnet10-s", "big": "resnet10-m"}
    assert name_students(["timm:vit_tiny.augreg", "torchvision:resnet18@small"]) == {
        "vit_tiny-augreg": "timm:vit_tiny.augreg",
        "resnet18-small": "torchvision:resnet18@small",
    }
    with pytest.raises(UserError, match="duplicate student name"):
        name_students(["resnet10-s", "resnet10-s"])
    for item in ("", "a=", "=a"):
        with pytest.raises(UserError, match="ARCH or NAME=ARCH"):
            name_students([item])


def test_extends(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('epochs = 3\nstudents = ["resnet10-m"]\n[optimizer]\nlr = 1.0\nmomentum = 0.1')
    (tmp_path / "middle.toml").write_text('extends = "base"\nepochs = 4\n[optimizer]\nlr = 2.0')
    (tmp_path / "top.toml").write_text('extends = "middle"\nstudents = ["resnet10-s"]')
    recipe = load_recipe(str(tmp_path / "top.toml"), {})
    assert (recipe.epochs, recipe.optimizer.lr, recipe.optimizer.momentum) == (4, 2.0, 0.1)
    assert recipe.students == {"resnet10-s": "resnet10-s"}
    (tmp_path / "top.toml").write_text('extends = "base.toml"')
    assert load_recipe(str(tmp_path / "top.toml"), {}).epochs == 3


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": 'extends = "a"'}, "extends itself"),
        ({"a": 'extends = "b"', "b": 'extends = "a"'}, "extends itself"),
        ({"a": "extends = 3"}, "extends takes the name of one recipe"),
        ({"a": 'extends = "cifr100"'}, "did you mean cifar100"),
        ({"a": "epochs ="}, "cannot be read"),
        ({"a": "x = " + "[" * 3000}, "cannot be read"),
        ({"a": b"dataset = '\xe9'"}, "cannot be read"),
    ],
)
def test_recipe_files_that_are_none(tmp_path: Path, files: dict[str, str | bytes], message: str) -> None:
    for name, content in files.items():
        (tmp_path / f"{name}.toml").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(UserError, match=message) as error:
        load_recipe(str(tmp_path / "a.toml"), {})
    assert "\n" not in str(error.value)


def test_sha256_is_of_what_decides_the_result() -> None:
    recipe = parse_recipe({"teacher": {"file": "a.pt"}})

    def changed(**changes: Any) -> str:
        return parse_recipe({"teacher": {"file": "a.pt"}} | changes).sha256()

    assert changed(teacher={"file": "b/c.pt"}) == recipe.sha256()
    assert changed(data_root="/somewhere") == recipe.sha256()
    assert changed(checkpoint={"every": "2min"}) == recipe.sha256()
    for change in ({"seed": 1}, {"epochs": 7}, {"teacher": {"file": "a.pt", "norm": "half"}}, {"deterministic": False}):
        assert changed(**change) != recipe.sha256()


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().seed = 3  # type: ignore[misc]


def test_an_added_key_at_its_default_leaves_the_hash_as_it_was() -> None:
    """The hash of 0.1.0's default recipe: whoever adds a key lists it in ADDED, so that old runs can be resumed."""
    assert Recipe().sha256() == "cf601423fe4777e49987feb328ed06d639d696ac48bf72335e332398dfe3b149"
    for table, keys in ADDED.items():
        for key in keys:
            section, content = Recipe(), Recipe().content()
            if table:
                section, content = getattr(section, table), content.get(table, {})
            assert key in type(section).model_fields
            assert key not in content
    assert parse_recipe({"student": {"resnet10-s": {"lr": 0.1}}}).sha256() != Recipe().sha256()
    assert "[student]" not in Recipe().to_toml()
    own = parse_recipe({"distill": {"losses": ["ce", "kd"]}})
    assert own.content()["distill"]["losses"][0]["loss"] == "ce"
    assert own.sha256() != Recipe().sha256()

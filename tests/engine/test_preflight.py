"""The preflight accepts a trained teacher as it is, and refuses it with a cause if its input is wrong."""

from __future__ import annotations

from fractions import Fraction
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from mcd_cli.engine.events import Event, InfoMessage, WarningMessage
from mcd_cli.engine.preflight import bar, check_teacher
from mcd_cli.engine.run import Run
from mcd_cli.engine.teacher import Teacher, about, read_teacher
from mcd_cli.errors import GateRefused
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.models.teacher_file import save_model
from support.runs import make_run, tiny_recipe


@pytest.mark.parametrize(("num_images", "num_classes"), [(270, 10), (600, 100), (50, 2), (1000, 200)])
def test_bar_is_the_binomial_quantile(num_images: int, num_classes: int) -> None:
    p = min(Fraction(2, num_classes), Fraction(num_classes + 1, 2 * num_classes))

    def at_most(k: int) -> Fraction:
        return sum((comb(num_images, i) * p**i * (1 - p) ** (num_images - i) for i in range(k + 1)), Fraction())

    k = bar(num_images, num_classes)
    assert at_most(k) >= Fraction(999, 1000) > at_most(k - 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, torch.Tensor]]:
    """A run, and the weights of a teacher that is right on most of V."""
    recipe = tiny_recipe(batch_size=64, teacher={"arch": "resnet10-xs", "epochs": 6})
    with RunFolder.create(str(tmp_path_factory.mktemp("runs") / "run"), recipe) as folder:
        run = make_run(recipe, folder)
        trainer = run.trainer(run.plans[0])
        for steps in trainer.epochs():
            for _ in steps:
                pass
            trainer.end_epoch()
    return run, trainer.best_weights["teacher"]


def given(trained: tuple[Run, dict[str, torch.Tensor]], folder: Path, norm: str = "auto", **changes: Any) -> Teacher:
    run, weights = trained
    path = folder / "teacher.safetensors"
    save_model(path, weights | changes, about("resnet10-xs", run.dataset))
    return read_teacher(path, None, norm, run.dataset, torch.device("cpu"), was_given=True)


def heard(run: Run, teacher: Teacher, force: bool = False) -> list[Event]:
    events: list[Event] = []
    check_teacher(teacher, run.loader, force, events.append)
    return events


def test_a_good_teacher_passes_in_silence(trained: Any, tmp_path: Path) -> None:
    (event,) = heard(trained[0], given(trained, tmp_path))
    assert isinstance(event, InfoMessage)
    accuracy = float(event.text.split("%")[0].split()[-1])
    assert accuracy > 80


def test_a_wrong_normalisation_is_found(trained: Any, tmp_path: Path) -> None:
    with pytest.raises(GateRefused, match=r"near chance; it reaches \d\d.\d% .* with --teacher-norm \w+"):
        heard(trained[0], given(trained, tmp_path, norm="9,9,9/9,9,9"))


def test_another_class_order_is_found(trained: Any, tmp_path: Path) -> None:
    order = torch.roll(torch.arange(10), 3)
    weights = trained[1]
    shuffled = given(trained, tmp_path, **{key: weights[key][order] for key in ("fc.weight", "fc.bias")})
    with pytest.raises(GateRefused, match="another order"):
        heard(trained[0], shuffled)


def test_a_foreign_teacher_is_refused_and_force_goes_on(trained: Any, tmp_path: Path) -> None:
    noise = {key: torch.randn_like(value) for key, value in trained[1].items() if key.startswith("fc")}
    foreign = given(trained, tmp_path, **noise | {"conv1.weight": torch.randn_like(trained[1]["conv1.weight"])})
    with pytest.raises(GateRefused, match="is it a teacher for this data set"):
        heard(trained[0], foreign)
    assert isinstance(heard(trained[0], foreign, force=True)[-1], WarningMessage)

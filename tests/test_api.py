"""The commands as functions: a ladder and a comparison from Python, with the user's own network, teacher and data."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from sklearn.datasets import load_digits
from torch import nn

import mcd_cli
from mcd_cli.cli.options import CompareOptions, DistillOptions
from mcd_cli.data import DATASETS, load_dataset
from mcd_cli.engine.events import EpochEnded, Event
from mcd_cli.errors import Interrupted, UserError
from mcd_cli.models import ARCHITECTURES
from support.commands import mcd


class Small(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        self.head = nn.Linear(16, classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.body(images))
        return logits


class Digits(torch.utils.data.Dataset[Any]):
    """scikit-learn's digits as PIL images."""

    def __init__(self, first: int, last: int) -> None:
        digits = load_digits()
        self.images, self.labels = digits.images[first:last], digits.target[first:last]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(np.rint(self.images[index] * 255 / 16).astype(np.uint8)), int(self.labels[index])


@pytest.fixture
def own() -> Iterator[None]:
    mcd_cli.register_architecture("own-small", Small)
    mcd_cli.register_dataset(
        "own-digits", Digits(0, 400), val=Digits(400, 500), test=Digits(500, 700), classes=list("0123456789")
    )
    yield
    for table in (ARCHITECTURES, DATASETS):
        for name in [name for name in table if name.startswith(("own-", "module-"))]:
            table.unregister(name)  # type: ignore[attr-defined]


def test_the_keywords_are_the_flags() -> None:
    for function, options in ((mcd_cli.distill, DistillOptions), (mcd_cli.compare, CompareOptions)):
        assert list(inspect.signature(function).parameters) == list(inspect.signature(options).parameters)
    with pytest.raises(TypeError, match="techer"):
        mcd_cli.distill(techer="r34.pt")  # type: ignore[call-arg]


def test_a_ladder_is_that_of_the_command_line(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[Event] = []
    ladder = mcd_cli.distill(
        recipe="tiny.toml",
        students=["resnet10-xxs", "small=resnet10-xxxs"],
        settings={"coordinator.every": 1},
        threads=1,
        out=place / "python",  # type: ignore[arg-type]
        quiet=True,
        on_event=events.append,
    )
    assert capsys.readouterr().out == ""
    assert [student.name for student in ladder.students] == ["resnet10-xxs", "small"]
    assert [event.record.epoch for event in events if isinstance(event, EpochEnded)][-2:] == [1, 2]
    args = ["--students", "resnet10-xxs,small=resnet10-xxxs", "--set", "coordinator.every=1", "--threads", "1", "-q"]
    assert mcd(monkeypatch, "distill", "--recipe", "tiny.toml", *args, "--out", "line") == 0
    files = [load_file(place / folder / "predictions.safetensors") for folder in ("python", "line")]
    assert files[0].keys() == files[1].keys()
    assert all((files[0][key] == files[1][key]).all() for key in files[0])
    capsys.readouterr()
    written = mcd_cli.export(ladder, students=["small"])
    assert capsys.readouterr().out == ""
    assert [path.name for path in written] == ["small.onnx"]
    assert written[0].is_file()


def test_own_network_teacher_and_data(own: None, place: Path) -> None:
    """None of them is in a file; the module is the teacher, to the bit."""
    torch.manual_seed(0)
    module = Small(10).eval()
    ladder = mcd_cli.distill(
        dataset="own-digits",
        image_size=8,
        teacher=module,  # type: ignore[arg-type]
        students={"mine": "own-small", "other": "resnet10-xxxs"},  # type: ignore[arg-type]
        epochs=1,
        settings={"warm_start.epochs": 1, "augment.preset": "none"},
        method="kd",
        batch_size=100,
        teacher_norm="none",
        threads=1,
        force=True,
        quiet=True,
    )
    assert [len(ladder.dataset.classes), *ladder.dataset.sizes.values()] == [10, 400, 100, 200]
    images = torch.from_numpy(np.stack([np.asarray(Digits(500, 700)[i][0]) for i in range(200)]))
    with torch.no_grad():
        logits = module((images[:, None].expand(-1, 3, -1, -1) / 255).float())
    expected = (logits.argmax(1).numpy() == Digits(500, 700).labels).mean()
    assert ladder.teacher is not None
    assert ladder.teacher.accuracy.test == pytest.approx(expected)
    assert isinstance(ladder.variant("mine").student.load(), nn.Module)


def test_images_of_all_kinds_are_the_same(own: None) -> None:
    pairs = Digits(0, 300)
    as_tensor = [(torch.from_numpy(np.array(image))[None].float() / 255, label) for image, label in pairs]  # type: ignore[attr-defined]
    as_array = [(np.asarray(image.convert("RGB")), label) for image, label in pairs]  # type: ignore[attr-defined]
    prints = set()
    for number, data in enumerate((pairs, as_tensor, as_array)):
        mcd_cli.register_dataset(f"own-{number}", data, classes=list("0123456789"))
        prints.add(load_dataset(f"own-{number}").fingerprint)
    assert len(prints) == 1


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([(np.zeros((8, 8, 3), np.uint8), 2)], "label 2 of the data set is not an index into its 2 classes"),
        ([(np.zeros((8, 8, 3), np.float32), 0)], "an image of the data set is float32"),
        ([("cat.png", 0)], "an image of the data set is a str; give PIL images, arrays or tensors"),
        ([(np.zeros((8, 6, 3), np.uint8), 0)], "not square; give image_size"),
        ([(np.zeros((8, 8, 3), np.uint8), 0), (np.zeros((9, 9, 3), np.uint8), 1)], "differ in size; give image_size"),
        ([], "has no images"),
    ],
)
def test_what_is_no_image_or_label_is_one_line(own: None, pairs: Any, message: str) -> None:
    mcd_cli.register_dataset("own-bad", pairs, classes=["cat", "dog"])
    with pytest.raises(UserError, match=message):
        load_dataset("own-bad")


def test_a_comparison(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = mcd_cli.compare(recipe="tiny.toml", methods=["ce", "kd"], seeds=[0], threads=1, quiet=True, out="both")  # type: ignore[arg-type]
    assert [row.name for row in document.contenders] == ["ce", "kd"]
    assert capsys.readouterr().out == ""


def test_errors_are_exceptions(place: Path) -> None:
    with pytest.raises(UserError, match="dry_run is for the command line"):
        mcd_cli.distill(dry_run=True)
    with pytest.raises(UserError, match="did you mean kd"):
        mcd_cli.distill(recipe="tiny.toml", method="kdd")

    def stop(event: Event) -> None:
        if isinstance(event, EpochEnded):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match="resume with"):
        mcd_cli.distill(recipe="tiny.toml", method="ce", out="cut", threads=1, quiet=True, on_event=stop)
    assert mcd_cli.distill(resume="cut", threads=1, quiet=True).method == "ce"

"""What the end of a run writes down of its students' probabilities, against their weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from mcd_cli.data import load_dataset
from mcd_cli.engine import finalize
from mcd_cli.engine.events import Event, InfoMessage
from mcd_cli.ladder.manifest import load_ladder
from support.runs import tiny_recipe, train


def test_the_temperature_of_every_student(uninterrupted: Path) -> None:
    """Fitted on val, scored on val and test: each figure by torch, from the stored weights."""
    dataset = load_dataset("digits", image_size=8)
    ladder = load_ladder(uninterrupted)
    predicted = load_file(uninterrupted / "predictions.safetensors")
    for student in ladder.students:
        calibration = student.calibration
        assert calibration is not None
        for part, ids in {"val": dataset.val, "test": dataset.test}.items():
            z = student.load()(dataset.images[ids] / 255.0).detach().double()
            y = dataset.labels[ids]
            assert torch.equal(predicted[f"{part}/best/{student.name}"], z.argmax(dim=1))
            for score, temperature in ((calibration.raw, 1.0), (calibration.scaled, calibration.temperature)):
                assert score[part].nll == pytest.approx(float(cross_entropy(z / temperature, y)), rel=1e-4)
            if part == "val":
                around = calibration.temperature * torch.linspace(0.8, 1.25, 901, dtype=torch.float64)
                best = around[torch.stack([cross_entropy(z / t, y) for t in around]).argmin()]
                assert calibration.temperature == pytest.approx(float(best), rel=2e-3)


def test_without_a_temperature(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where logits are not finite, a line says so; the rest of the manifest is written."""
    monkeypatch.setattr(finalize, "calibrate", lambda logits: (None, "logits are not finite, so it has no temperature"))
    said: list[Event] = []
    ladder = train(tiny_recipe(students=["resnet10-xxxs"], method="ce"), tmp_path / "run", said.append)
    assert InfoMessage("resnet10-xxxs: logits are not finite, so it has no temperature") in said
    assert "calibration" not in ladder.document()["students"][0]


def test_a_student_trained_on_val_has_none(tmp_path: Path) -> None:
    """It knows val's answers, so a temperature fitted there would make it too sure of itself."""
    ladder = train(tiny_recipe(students=["resnet10-xxxs"], method="kd", train_on_val=True), tmp_path / "run")
    assert ladder.students[0].calibration is None

"""What C-NET learned: averages of the weights used in training, against a record of every step, and their plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mcd_cli.engine.instance_weights import NUM_EXTREMES, InstanceWeights
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.metrics import read_metrics
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.reporting.coordinator_plot import draw_story
from support.runs import make_run, tiny_recipe, train

RECIPE = tiny_recipe(epochs=3, label_noise=0.2, coordinator={"every": 1, "lr": 0.01})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A whole run, with a note of what every image weighed in every step, and the lines of its metrics."""
    weighed: list[Tensor] = []
    plain = Coordinator.weigh

    def note(self: Coordinator, p: Tensor, permutation: Tensor | None = None) -> Tensor:
        w = plain(self, p, permutation)
        if not torch.is_grad_enabled():  # φ's own pass weighs once more, with a graph
            weighed.append(w.double())
        return w

    out = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch, RunFolder.create(str(out), RECIPE) as folder:
        patch.setattr(Coordinator, "weigh", note)
        training = make_run(RECIPE, folder)
        training.train()
    loader = training.loader
    ids = [batch.ids for epoch in range(3) for batch in loader.epoch(epoch)]
    assert len(ids) == len(weighed) == 12
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {"ids": ids, "weighed": weighed, "lines": lines, "data": loader.dataset, "records": read_metrics(out)}


def averages(run: dict[str, Any]) -> dict[int, np.ndarray]:
    """Sample id → [k, c]: the weights' mean over all steps, and by how much that image exceeded its batches."""
    found: dict[int, list[np.ndarray]] = {}
    for ids, w in zip(run["ids"], run["weighed"], strict=True):
        for i, own in zip(ids.tolist(), w, strict=True):
            found.setdefault(i, []).append((own - w.mean(dim=0)).numpy())
    overall = np.mean([w.mean(dim=0).numpy() for w in run["weighed"]], axis=0)
    return {i: overall + np.mean(excess, axis=0) for i, excess in found.items()}


def test_images_and_classes_are_told_at_the_end_of_the_stage(run: dict[str, Any]) -> None:
    lines, data = run["lines"], run["data"]
    told = [line for line in lines if any("images" in student for student in line["students"].values())]
    assert told == lines[-1:]
    expected = averages(run)
    assert len(expected) > 1000
    for j, student in enumerate(RECIPE.students):
        images = lines[-1]["students"][student]["images"]
        beta = {i: w[j, 1] for i, w in expected.items()}
        highest, lowest = images["highest"], images["lowest"]
        assert [len(highest), len(lowest)] == [NUM_EXTREMES] * 2
        order = sorted(beta.values())
        np.testing.assert_allclose([one["beta"] for one in lowest], order[:NUM_EXTREMES], atol=2e-5)
        np.testing.assert_allclose([one["beta"] for one in highest], order[: -NUM_EXTREMES - 1 : -1], atol=2e-5)
        for one in (*highest, *lowest):
            assert one["beta"] == pytest.approx(beta[one["image"]], abs=2e-5)
            assert one["label"] == data.classes[data.labels[one["image"]]]
            assert one["mislabelled"] == bool(data.mislabelled[one["image"]])
        for c, symbol in enumerate(("alpha", "beta", "gamma")):
            values = {i: w[j, c] for i, w in expected.items()}
            assert images["spread"][symbol] == pytest.approx(np.std(list(values.values())), abs=2e-5)
            for label, name in enumerate(data.classes):
                of_class = [v for i, v in values.items() if data.labels[i] == label]
                assert images["by_class"][symbol][name] == pytest.approx(np.mean(of_class), abs=2e-5)
            moved = [v for i, v in values.items() if data.mislabelled[i]]
            assert 0.15 < len(moved) / len(values) < 0.25
            assert images["mislabelled"]["yes"][symbol] == pytest.approx(np.mean(moved), abs=2e-5)


def test_drift_does_not_tell_when_an_image_was_used() -> None:
    """All weights grow from step to step, and one image is missing in the first: it is no extreme for that."""
    seen = InstanceWeights(5, 1, 2, torch.device("cpu"))
    own = torch.tensor([0.1, 0.0, -0.1, 0.0, 0.0])
    for ids, level in ((torch.arange(4), 0.2), (torch.arange(5), 0.8)):
        w = (level + own[ids] - own[ids].mean())[:, None, None].expand(-1, 1, 2)
        seen.add(ids, w)
    assert (seen.means / seen.steps).flatten().tolist() == pytest.approx([0.5, 0.5])
    assert (seen.excess[:, 0, 0] / seen.uses).tolist() == pytest.approx(own.tolist())


def test_methods_without_c_net_have_no_story(tmp_path: Path) -> None:
    train(tiny_recipe(method="kd", epochs=1), tmp_path / "kd")
    (tmp_path / "story").mkdir()
    assert not draw_story(read_metrics(tmp_path / "kd"), tmp_path / "story")
    assert not any((tmp_path / "story").iterdir())


def test_the_picture(run: dict[str, Any], tmp_path: Path) -> None:
    lines, records, asked = run["lines"], run["records"], []

    def pixels(image: int) -> np.ndarray:
        asked.append(image)
        return run["data"].images[image].numpy()

    assert draw_story(records, tmp_path, pixels)
    assert (tmp_path / "coordinator.png").read_bytes()[:4] == b"\x89PNG"
    drawn = (tmp_path / "coordinator.svg").read_text()
    assert drawn.count("<image") == len(RECIPE.students)  # a sheet for each
    ends = [s["images"][end] for s in lines[-1]["students"].values() for end in ("highest", "lowest")]
    assert all(len(end) == NUM_EXTREMES for end in ends)
    assert sorted(asked) == sorted(one["image"] for end in ends for one in end)
    assert draw_story(records, tmp_path)
    drawn = (tmp_path / "coordinator.svg").read_text()
    assert "<svg" in drawn
    assert "<image" not in drawn
    assert draw_story(records[:-1], tmp_path)  # a run that goes on has no images yet

"""Methods that are equal by definition give the same bits over a whole run."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from mcd_cli.engine.checkpoint import read_state
from mcd_cli.engine.run import Run
from mcd_cli.errors import Interrupted, UserError
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.metrics import read_metrics
from mcd_cli.methods import METHODS
from mcd_cli.models import build
from mcd_cli.reporting.coordinator_plot import story_figure
from support.runs import go_on, make_run, signal_at, tiny_recipe, train

LARGE, MIDDLE, SMALL = "resnet10-xs", "resnet10-xxs", "resnet10-xxxs"
LADDER = [SMALL, LARGE, MIDDLE]  # a recipe's order is nobody's business


@pytest.fixture(scope="module")
def run_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a finished run of a method, trained once."""

    @cache
    def run(method: str, students: tuple[str, ...] = tuple(LADDER), **options: Any) -> Path:
        out = tmp_path_factory.mktemp("runs") / "run"
        train(recipe_of(method, students, **options), out)
        return out

    return run


def recipe_of(method: str, students: tuple[str, ...] = tuple(LADDER), **options: Any) -> Any:
    shared = options.pop("shared", True)
    return tiny_recipe(
        method=method,
        students=list(students),
        epochs=2,
        distill=options,
        optimizer={"lr": 0.5},  # so large that some student is at its best before the end
        schedule={"name": "constant"},
        coordinator={"every": 2, "shared": shared},
    )


def weights(run: Path, student: str) -> bytes:
    """At its best on V."""
    return (run / "students" / f"{student}.safetensors").read_bytes()


def same_to_the_bit(one: Path, other: Path, *students: str) -> None:
    """The best weights, and the predictions of the last ones."""
    left, right = (load_file(run / "predictions.safetensors") for run in (one, other))
    for student in students:
        assert weights(one, student) == weights(other, student)
        assert np.array_equal(left[f"test/last/{student}"], right[f"test/last/{student}"])


def lines(run: Path) -> list[dict[str, Any]]:
    """metrics.jsonl of the method's own stages."""
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["stage"].startswith("distill")]


def test_meta_distil_is_mc_distil_nops_with_one_student(run_of: Any) -> None:
    for student in (LARGE, SMALL):
        same_to_the_bit(run_of("meta-distil"), run_of("mc-distil-nops", (student,)), student)
    assert weights(run_of("meta-distil"), SMALL) != weights(run_of("mc-distil-nops"), SMALL)  # there C-NET is shared


def test_a_c_net_per_student_is_meta_distil_on_the_same_batches(run_of: Any) -> None:
    """Without the pooled term, students that share no C-NET share nothing: control (d)."""
    same_to_the_bit(run_of("meta-distil"), run_of("mc-distil-nops", shared=False), *LADDER)


def test_kd_takd_and_dgkd_are_one_for_the_largest_student(run_of: Any) -> None:
    same_to_the_bit(run_of("kd"), run_of("takd"), LARGE)
    same_to_the_bit(run_of("kd"), run_of("dgkd"), LARGE)
    for method in ("takd", "dgkd"):
        assert weights(run_of("kd"), MIDDLE) != weights(run_of(method), MIDDLE)


def test_dgkd_that_drops_all_but_the_teacher_is_kd(run_of: Any) -> None:
    same_to_the_bit(run_of("kd"), run_of("dgkd", drop=1.0), *LADDER)


def test_rmc_that_softens_nothing_is_kd(run_of: Any) -> None:
    same_to_the_bit(run_of("kd"), run_of("rmc", alpha=1.0), *LADDER)
    assert weights(run_of("kd"), SMALL) != weights(run_of("rmc"), SMALL)


@pytest.mark.parametrize(("above", "below"), [(LARGE, MIDDLE), (MIDDLE, SMALL)])
def test_takd_learns_from_the_distilled_student_above(run_of: Any, tmp_path: Path, above: str, below: str) -> None:
    """Each link is kd with the written file of the one above (its best on V) as the teacher."""
    of_chain = run_of("takd")
    base = recipe_of("kd", (below,)).model_dump(by_alias=True)
    teacher = {"file": str(of_chain / "students" / f"{above}.safetensors"), "arch": None}
    train(type(recipe_of("kd")).model_validate(base | {"teacher": teacher}), tmp_path / "link")
    same_to_the_bit(of_chain, tmp_path / "link", below)


def test_the_best_on_v_is_not_the_last(run_of: Any) -> None:
    """Or else the chain's test could not tell them apart."""
    for student in (LARGE, MIDDLE):
        (file,) = (run_of("takd") / "checkpoint").glob(f"distill.{student}-*")
        kept = read_state(file).tensors
        pairs = [(v, kept[k.replace("best/", "last/")]) for k, v in kept.items() if k.startswith("best/")]
        if not all(torch.equal(best, last) for best, last in pairs):
            return
    pytest.fail("every student was at its best at the end")


def test_dgkds_links_weigh_more_and_more(run_of: Any) -> None:
    for method, totals in (
        (run_of("dgkd"), [1.0, 2.0, 3.0]),
        (run_of("dgkd", normalise=True), [1.0, 1.0, 1.0]),
    ):
        for student, total in zip((LARGE, MIDDLE, SMALL), totals, strict=True):
            of_stage = [line for line in lines(method) if line["stage"] == f"distill/{student}"]
            assert of_stage[-1]["students"][student]["total_weight"] == pytest.approx(total)
    assert set(of_stage[-1]["students"][SMALL]["losses"]) == {"alpha", "beta", f"beta/{LARGE}", f"beta/{MIDDLE}"}


def test_rmcs_difficulty_once_in_eval_mode_on_plain_images(run_of: Any) -> None:
    """Against numpy on the warm-started students, one image at a time by its sample id."""
    run = run_of("rmc")
    newest = max((run / "checkpoint").glob("state-*"))
    assert not read_state(newest).tensors  # between stages: the table went with its stage
    with pytest.raises(Interrupted):
        train(recipe_of("rmc"), run.parent / "cut", signal_at("distill", 5))
    state = read_state(max((run.parent / "cut" / "checkpoint").glob("state-*")))
    table = state.tensors["memory:difficulty"]

    recipe = recipe_of("rmc")
    with RunFolder.create(str(run.parent / "data"), recipe) as folder:
        data = make_run(recipe, folder).dataset
    (file,) = (run / "checkpoint").glob("warm-start-*")
    kept = read_state(file).tensors
    few = data.train[::37]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (data.mean, data.std))
    ce = []
    for student in LADDER:
        network = build(student, data.num_classes).eval()
        prefix = f"best/{student}:"
        network.load_state_dict({k.removeprefix(prefix): v for k, v in kept.items() if k.startswith(prefix)})
        with torch.no_grad():
            z = torch.cat([network(((data.images[i] / 255 - mean) / std)[None]) for i in few]).double()
        ce.append((z.logsumexp(-1) - z[torch.arange(len(few)), data.labels[few]]).numpy())
    v = np.var(ce, axis=0)
    d = table[few].double().numpy()
    slope, _ = np.polyfit(v, d, 1)  # v_min and v_max are of all images, so the line is known but for its ends
    np.testing.assert_allclose(d - d[0], slope * (v - v[0]), atol=2e-5)
    assert slope > 0
    of_train = table[data.train]
    assert (of_train.min().item(), of_train.max().item()) == (pytest.approx(0.3), 1.0)
    assert table.isnan().sum() == len(table) - len(data.train)

    told = lines(run)
    assert [line for line in told if "difficulty" in line] == told[:1]
    quantiles = np.quantile(of_train.double().numpy(), [0, 0.05, 0.25, 0.5, 0.75, 0.95, 1])
    np.testing.assert_allclose(list(told[0]["difficulty"].values()), quantiles, rtol=1e-6)

    go_on(run.parent / "cut")
    same_to_the_bit(run, run.parent / "cut", *LADDER)


def test_a_chain_resumes_to_the_bit(run_of: Any, tmp_path: Path) -> None:
    """With its frozen larger students, and with the draws of which to drop."""
    with pytest.raises(Interrupted):
        train(recipe_of("dgkd", drop=0.5), tmp_path / "run", signal_at(f"distill/{SMALL}", 5))
    go_on(tmp_path / "run")
    same_to_the_bit(run_of("dgkd", drop=0.5), tmp_path / "run", *LADDER)
    assert lines(run_of("dgkd", drop=0.5)) == lines(tmp_path / "run")


@pytest.mark.parametrize(
    "method", [name for name, spec in METHODS.items() if "logit_losses" not in spec.target or name == "dkd-lskd"]
)
def test_every_method_resumes_to_the_bit(run_of: Any, tmp_path: Path, method: str) -> None:
    """Stopped in the last stage, after a few steps: ramps, tables and draws are functions of the step.

    The methods of logit_losses.py differ only in their losses, so one of them, with a ramp, is enough.
    """
    whole = run_of(method)
    with pytest.raises(Interrupted):
        train(recipe_of(method), tmp_path / "run", signal_at(lines(whole)[-1]["stage"], 5))
    go_on(tmp_path / "run")
    same_to_the_bit(whole, tmp_path / "run", *LADDER)
    assert lines(whole) == lines(tmp_path / "run")


EQ_5 = ["ce", {"loss": "kd", "tau": 2.0}, {"loss": "kd", "follows": "pooled"}]


def test_a_bank_of_mc_distils_losses_is_mc_distil(run_of: Any) -> None:
    train(recipe_of("mc-distil", losses=EQ_5), run_of("mc-distil").parent / "own")
    same_to_the_bit(run_of("mc-distil"), run_of("mc-distil").parent / "own", *LADDER)


def test_a_bank_of_kds_losses_is_kd(run_of: Any, tmp_path: Path) -> None:
    losses = [{"loss": "ce", "weight": 0.25}, {"loss": "kd", "weight": 0.25}]
    train(recipe_of("bank", losses=losses, total=2.0), tmp_path / "own")
    same_to_the_bit(run_of("kd"), tmp_path / "own", *LADDER)
    assert [line["students"] for line in lines(tmp_path / "own")] != [line["students"] for line in lines(run_of("kd"))]


def test_a_mixed_bank_under_c_net_resumes_and_shows_itself(tmp_path: Path) -> None:
    """Several temperatures and targets, a ramp as long as the stage, images sorted by a loss without a letter."""
    recipe = recipe_of(
        "mc-distil", losses=["ce", {"loss": "nckd", "ramp": 1.0}, "dist-intra", "kd:larger", "kd:pooled"]
    )
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", 5))
    go_on(tmp_path / "cut")
    same_to_the_bit(tmp_path / "whole", tmp_path / "cut", *LADDER)
    assert lines(tmp_path / "whole") == lines(tmp_path / "cut")
    (images,) = {tuple(s["images"]["by_class"]) for s in lines(tmp_path / "cut")[-1]["students"].values()}
    assert images == ("ce", "nckd", "dist-intra", "kd/larger", "kd/pooled")
    figure = story_figure(read_metrics(tmp_path / "cut"))
    assert figure is not None
    assert "nckd" in [text.get_text() for text in figure.legends[0].get_texts()]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_can_be_estimated(tmp_path: Path, method: str) -> None:
    """Also one with a pass before training, and before anything is trained."""
    recipe = recipe_of(method)
    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        assert 0 < make_run(recipe, folder).estimate() < 600


def test_training_on_v(tmp_path: Path) -> None:
    """Control (e): the method's own stages see train ∪ V, and the last epoch is the one kept."""
    recipe = tiny_recipe(method="kd", train_on_val=True, optimizer={"lr": 0.5})
    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        run: Run = make_run(recipe, folder)
        run.train()
        data = run.dataset
        seen = torch.cat([batch.ids for epoch in range(12) for batch in run.live.loader.epoch(epoch)]).unique()
        assert set(seen.tolist()) == {*data.train.tolist(), *data.val.tolist()}
        warm = run.trainer(run.plans[-2])
        assert {i for b in warm.loader.epoch(0) for i in b.ids.tolist()} <= set(data.train.tolist())
    best = load_file(tmp_path / "run" / "predictions.safetensors")
    for student in recipe.students:
        assert np.array_equal(best[f"test/best/{student}"], best[f"test/last/{student}"])


def test_training_on_v_is_not_for_c_net(tmp_path: Path) -> None:
    recipe = tiny_recipe(method="mc-distil", train_on_val=True)
    with (
        RunFolder.create(str(tmp_path / "run"), recipe) as folder,
        pytest.raises(UserError, match="learns its loss weights on val"),
    ):
        make_run(recipe, folder)


def test_one_student_shares_with_nobody() -> None:
    with pytest.raises(UserError, match=r"coordinator\.shared: false needs two students"):
        tiny_recipe(students=[SMALL], coordinator={"shared": False})

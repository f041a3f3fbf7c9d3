"""Mixed images and their losses against torchvision's MixUp and CutMix, and against arithmetic by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from mcd_cli.comparison.plan import warm_start_recipe
from mcd_cli.data.loader import Batch
from mcd_cli.data.mixing import Mixing
from mcd_cli.engine.stages import plan_stages
from mcd_cli.errors import Interrupted
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.losses import LOSSES, term
from mcd_cli.losses.bank import instance_losses
from mcd_cli.losses.ce import cross_entropy
from mcd_cli.seeds import generator
from support.runs import finished, go_on, make_run, signal_at, tiny_recipe, train

N, C, SIDE = 6, 5, 16
STEPS = range(40)


def batch_of(n: int = N) -> Batch:
    made = torch.Generator().manual_seed(0)
    x = torch.rand(n, 3, SIDE, SIDE, generator=made, dtype=torch.float64)
    return Batch(torch.arange(n), x.contiguous(memory_format=torch.channels_last), torch.arange(n) % C, n)


def soft_labels(batch: Batch) -> Tensor:
    assert batch.second is not None
    assert batch.share is not None
    return batch.share * F.one_hot(batch.labels, C) + (1 - batch.share) * F.one_hot(batch.second, C)


def shares_of(mixing: Mixing) -> np.ndarray:
    """λ of the larger part in many steps."""
    shares = [mixing(batch_of(2), generator("t", step)).share for step in range(400)]
    return np.array([float(share) for share in shares if share is not None])


@pytest.mark.parametrize("step", STEPS)
def test_mixup_is_torchvisions(step: int) -> None:
    batch, mixing = batch_of(), Mixing(mixup=0.5, cutmix=0.0)
    mixed = mixing(batch, generator("t", step))
    assert mixed.share is not None
    assert mixed.share >= 0.5
    own = torch.equal(mixed.ids, batch.ids)  # else each is more of its partner
    lam = float(mixed.share if own else 1 - mixed.share)
    params = {"labels": batch.labels, "batch_size": N, "lam": lam}
    theirs = v2.MixUp(num_classes=C)
    torch.testing.assert_close(mixed.images, theirs.transform(batch.images, params))
    torch.testing.assert_close(soft_labels(mixed), theirs.transform(batch.labels, params).double())


@pytest.mark.parametrize("step", STEPS)
def test_cutmix_is_torchvisions(step: int) -> None:
    batch, mixing = batch_of(), Mixing(mixup=0.0, cutmix=1.0)
    mixed = mixing(batch, generator("t", step))
    changed = (mixed.images != batch.images).any(dim=0).any(dim=0)
    rows, columns = (changed.any(dim=d).nonzero().flatten().tolist() for d in (1, 0))
    box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1) if rows else (0, 0, 0, 0)
    area = (box[2] - box[0]) * (box[3] - box[1])
    assert changed.sum() == area  # a box, and all of it
    params = {"labels": batch.labels, "batch_size": N, "box": box, "lam_adjusted": 1 - area / SIDE**2}
    theirs = v2.CutMix(num_classes=C)
    assert torch.equal(mixed.images, theirs.transform(batch.images, params))
    torch.testing.assert_close(soft_labels(mixed), theirs.transform(batch.labels, params).double())


def test_what_is_drawn() -> None:
    """λ ~ Beta(α, α), folded at 1/2: for α = 1 uniform in [1/2, 1]."""
    shares = shares_of(Mixing(mixup=1.0, cutmix=0.0))
    assert shares.min() >= 0.5
    assert shares.mean() == pytest.approx(0.75, abs=0.03)
    assert shares.var() == pytest.approx(1 / 48, abs=0.004)
    assert shares_of(Mixing(mixup=0.05, cutmix=0.0)).mean() > 0.95
    assert shares_of(Mixing(mixup=50.0, cutmix=0.0)).mean() < 0.6


def test_one_of_both_is_drawn_in_a_step() -> None:
    batch = batch_of()
    cuts = []
    for step in range(200):
        mixed = Mixing(mixup=1.0, cutmix=1.0)(batch, generator("t", step)).images
        from_either = (mixed == batch.images) | (mixed == batch.images.roll(1, 0))
        cuts.append(bool(from_either.all()))
    assert 70 < sum(cuts) < 130


def test_ids_and_labels_are_of_the_larger_part() -> None:
    """Every image remains once, and is the nearer one of the two."""
    batch = batch_of()
    for mixing in (Mixing(0.5, 0.0), Mixing(0.0, 0.5)):
        for step in STEPS:
            mixed = mixing(batch, generator("t", step))
            assert sorted(mixed.ids.tolist()) == list(range(N))
            assert torch.equal(mixed.labels, batch.labels[mixed.ids])
            first = batch.images[mixed.ids]
            second = batch.images.roll(1, 0) if torch.equal(mixed.ids, batch.ids) else batch.images
            distances = [(mixed.images - x).abs().sum(dim=(1, 2, 3)) for x in (first, second)]
            assert (distances[0] <= distances[1] * 1.5).all()
            assert mixed.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_is_the_mean_over_both_labels(loss: str) -> None:
    """λ ℓ(y) + (1 − λ) ℓ(y'), image by image; for ce that is cross-entropy with soft labels."""
    mixed = Mixing(mixup=1.0, cutmix=0.0)(batch_of(), generator("t", 3))
    assert mixed.second is not None
    assert mixed.share is not None
    made = torch.Generator().manual_seed(1)
    z, t = (2 * torch.randn(N, 2, 1, C, generator=made, dtype=torch.float64) for _ in range(2))
    bank = (term(loss),)
    found = mixed.over_labels(lambda y: instance_losses(z[:, :, 0], y, t, bank))
    first, second = (instance_losses(z[:, :, 0], y, t, bank) for y in (mixed.labels, mixed.second))
    torch.testing.assert_close(found, float(mixed.share) * first + (1 - float(mixed.share)) * second)
    if loss in ("kd", "lskd", "normkd", "ttm", "wttm", "dist-inter", "dist-intra"):  # they do not see the label
        torch.testing.assert_close(found, first)
    if loss == "ce":
        soft = soft_labels(mixed)
        by_hand = [[-(soft[i] * z[i, j, 0].log_softmax(-1)).sum() for j in range(2)] for i in range(N)]
        torch.testing.assert_close(found[:, :, 0], torch.tensor(by_hand, dtype=torch.float64))


def test_without_a_mixture_the_labels_are_asked_once() -> None:
    batch, asked = batch_of(), []

    def f(y: Tensor) -> Tensor:
        asked.append(y)
        return cross_entropy(torch.zeros(N, 1, C), y)

    batch.over_labels(f)
    assert len(asked) == 1
    assert asked[0] is batch.labels


MIXED = {"augment": {"mixup": 0.4, "cutmix": 1.0}}


@pytest.mark.parametrize("method", ["mc-distil", "dgkd"])
def test_resuming_is_exact(tmp_path: Path, method: str) -> None:
    recipe = tiny_recipe(method=method, **MIXED)
    stage = "distill" if method == "mc-distil" else "distill/resnet10-xxxs"
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at(stage, 3))
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")


def test_a_chain_and_kd_see_the_same_mixtures(tmp_path: Path) -> None:
    """Its first link is what kd trains: a comparison trains that student once."""
    weights = []
    for method, stage in (("kd", "distill"), ("takd", "distill/resnet10-xxs")):
        recipe = tiny_recipe(method=method, **MIXED)
        with RunFolder.create(str(tmp_path / method), recipe) as opened:
            run = make_run(recipe, opened)
        torch.manual_seed(0)  # of the teacher, an untrained one
        trainer = run.trainer(next(plan for plan in run.plans if plan.name == stage), rehearsal=True)
        for _ in trainer.steps():
            pass
        weights.append(trainer.students.networks["resnet10-xxs"].state_dict())
    assert all(torch.equal(value, weights[1][key]) for key, value in weights[0].items())


def test_only_the_methods_stages_mix() -> None:
    recipe = tiny_recipe(method="takd", **MIXED)
    mixing = {plan.name: plan.mixing for plan in plan_stages(recipe, 10, train_teacher=True)}
    own = Mixing(0.4, 1.0)
    assert list(mixing.values()) == [None, None, own, own]
    students = dict(recipe.students)
    assert warm_start_recipe(recipe, students) == warm_start_recipe(tiny_recipe(), students)

"""Batches: a permutation of train by (seed, epoch), val without replacement, resumed in the middle of an epoch."""

from __future__ import annotations

import pytest
import torch

from mcd_cli.data import load_dataset
from mcd_cli.data.augment import PRESETS
from mcd_cli.data.dataset import Dataset
from mcd_cli.data.loader import Batch, Loader
from mcd_cli.errors import UserError


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return load_dataset("digits", report=lambda line: None)


def loader_of(dataset: Dataset, batch_size: int = 100, seed: int = 0, augment_seed: int = 0) -> Loader:
    return Loader(
        dataset,
        batch_size=batch_size,
        seed=seed,
        augmentation=PRESETS["digits"],
        augment_seed=augment_seed,
        device=torch.device("cpu"),
    )


def ids(batches: list[Batch]) -> list[list[int]]:
    return [batch.ids.tolist() for batch in batches]


def test_an_epoch_is_a_permutation_with_the_last_short_batch_dropped(dataset: Dataset) -> None:
    batches = list(loader_of(dataset).epoch(0))
    seen = [i for batch in ids(batches) for i in batch]
    assert len(batches) == len(dataset.train) // 100
    assert {len(batch.ids) for batch in batches} == {100}
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(dataset.train.tolist())
    for batch in batches[:2]:
        assert torch.equal(batch.labels, dataset.labels[batch.ids])
    # a batch size that divides nothing away covers all of train
    whole = next(iter(loader_of(dataset, len(dataset.train)).epoch(0)))
    assert sorted(whole.ids.tolist()) == dataset.train.tolist()


def test_the_order_is_a_function_of_seed_and_epoch(dataset: Dataset) -> None:
    first = ids(list(loader_of(dataset).epoch(1)))
    torch.rand(7)  # no hidden generator state
    assert ids(list(loader_of(dataset).epoch(1))) == first
    assert ids(list(loader_of(dataset).epoch(2))) != first
    assert ids(list(loader_of(dataset, seed=1).epoch(1))) != first
    assert ids(list(loader_of(dataset, augment_seed=1).epoch(1))) == first


def test_going_on_in_mid_epoch(dataset: Dataset) -> None:
    loader = loader_of(dataset)
    whole, rest = list(loader.epoch(3)), list(loader.epoch(3, start=4))
    assert ids(rest) == ids(whole[4:])
    for a, b in zip(rest, whole[4:], strict=True):
        assert torch.equal(a.images, b.images)
    assert list(loader.epoch(3, start=loader.num_steps)) == []


def test_an_image_looks_the_same_in_any_batch_of_the_epoch(dataset: Dataset) -> None:
    looks = []
    for batch_size, seed in ((100, 0), (37, 5)):
        batches = list(loader_of(dataset, batch_size, seed).epoch(2))
        looks.append({int(i): image for batch in batches for i, image in zip(batch.ids, batch.images, strict=True)})
    both = set(looks[0]) & set(looks[1])
    assert len(both) > 900
    assert all(torch.equal(looks[0][i], looks[1][i]) for i in both)
    other = next(iter(loader_of(dataset, augment_seed=1).epoch(2)))
    assert not all(torch.equal(looks[0][int(i)], x) for i, x in zip(other.ids, other.images, strict=True))


def test_validation_batches_draw_without_replacement(dataset: Dataset) -> None:
    loader = loader_of(dataset, batch_size=64)
    per_lap = len(dataset.val) // 64
    assert per_lap >= 2
    batches = [loader.validation_batch(update) for update in range(2 * per_lap)]
    for lap in (batches[:per_lap], batches[per_lap:]):
        seen = [i for batch in ids(lap) for i in batch]
        assert len(set(seen)) == len(seen) == 64 * per_lap
        assert set(seen) <= set(dataset.val.tolist())
    assert ids(batches[:1]) != ids(batches[per_lap : per_lap + 1])
    assert ids([loader.validation_batch(3)]) == ids(batches[3:4])
    plain = dataset.images[batches[0].ids] / 255  # the test transform
    assert torch.equal(batches[0].images, plain)


def test_validation_batches_of_a_small_v_are_all_of_it(dataset: Dataset) -> None:
    batch = loader_of(dataset, batch_size=len(dataset.val) + 1).validation_batch(9)
    assert sorted(batch.ids.tolist()) == dataset.val.tolist()


def test_in_order_reads_every_image_once(dataset: Dataset) -> None:
    batches = list(loader_of(dataset, batch_size=7).in_order(dataset.test))
    assert [i for batch in ids(batches) for i in batch] == dataset.test.tolist()


def test_a_batch_larger_than_the_data_is_refused(dataset: Dataset) -> None:
    n = len(dataset.train)
    with pytest.raises(UserError, match=rf"a batch of {n + 1} is larger than the training split \({n} images\)"):
        loader_of(dataset, n + 1)

"""An augmented image depends on (seed, epoch, sample id) only; each operation against torchvision."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from mcd_cli.data.augment import (
    NUM_DRAWS,
    PRESETS,
    Augmentation,
    color_jitter,
    cutout,
    draws_of_epoch,
    pad_crop,
    resized_crop,
    warp,
)

N = 16


def images(side: int = 16) -> Tensor:
    return torch.randint(0, 256, (N, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("side", [16, 33])
@pytest.mark.parametrize("preset", PRESETS)
def test_shape_range_and_sample_ids(preset: str, side: int) -> None:
    """Each image comes out the same whatever its place in the batch and its company."""
    augment, x = PRESETS[preset], images(side)
    draws = draws_of_epoch(N, seed=3, epoch=5)
    out = augment(x, draws)
    assert out.shape == x.shape
    assert out.dtype == torch.float32
    assert 0 <= out.min() <= out.max() <= 1
    ids = torch.randperm(N)[:5]
    torch.testing.assert_close(augment(x[ids], draws[ids]), out[ids], rtol=0, atol=1e-6)
    torch.testing.assert_close(augment(x, draws_of_epoch(N, seed=3, epoch=5)), out, rtol=0, atol=0)
    if preset != "none":
        for seed, epoch in ((3, 6), (4, 5)):
            assert not torch.equal(augment(x, draws_of_epoch(N, seed=seed, epoch=epoch)), out)


def test_none_changes_nothing() -> None:
    torch.testing.assert_close(PRESETS["none"](images(), torch.rand(N, NUM_DRAWS)), images() / 255)


def test_draws_belong_to_sample_ids() -> None:
    """A larger data set does not reshuffle what the first images see; uniforms cover [0, 1)."""
    table = draws_of_epoch(5000, seed=0, epoch=0)
    assert torch.equal(table[:100], draws_of_epoch(5000, seed=0, epoch=0)[:100])
    assert 0 <= table.min() < 0.001
    assert 0.999 < table.max() < 1
    assert (table.mean(dim=0) - 0.5).abs().max() < 0.02


def test_pad_crop_is_torchvisions_pad_and_crop() -> None:
    x, u = images(), torch.rand(N, 2)
    ours = pad_crop(x, u[:, 0], u[:, 1], padding=2)
    for i in range(N):
        top, left = int(u[i, 0] * 5), int(u[i, 1] * 5)
        assert torch.equal(ours[i], TF.crop(TF.pad(x[i], [2] * 4), top, left, 16, 16))


def test_pad_crop_reaches_every_offset() -> None:
    x, u = images()[:1].expand(2, -1, -1, -1), torch.tensor([0.0, 1 - 2**-24])
    ours = pad_crop(x, u, u, padding=2)
    assert torch.equal(ours[0, :, 2:, 2:], x[0, :, :-2, :-2])
    assert torch.equal(ours[1, :, :-2, :-2], x[0, :, 2:, 2:])
    assert ours[0, :, :2].max() == 0


def test_color_jitter_is_torchvisions_where_nothing_clamps() -> None:
    x = 0.4 + 0.2 * torch.rand(N, 3, 8, 8)
    factors = 0.8 + 0.4 * torch.rand(N, 3)
    ours = color_jitter(x, factors)
    for i in range(N):
        b, c, s = factors[i].tolist()
        expected = TF.adjust_saturation(TF.adjust_contrast(TF.adjust_brightness(x[i], b), c), s)
        torch.testing.assert_close(ours[i], expected, rtol=0, atol=2e-4)  # torchvision's grey weights: 4 digits


def test_resized_crop_boxes_lie_inside() -> None:
    u = torch.rand(20_000, 4)
    u[:16] = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)  # all corners
    matrix, offset = resized_crop(u)
    size = torch.diagonal(matrix, dim1=1, dim2=2)
    assert (offset.abs() + size).max() <= 1 + 1e-6
    area, ratio = size[:, 0] * size[:, 1], size[:, 0] / size[:, 1]
    assert 0.08 - 1e-6 <= area.min() < 0.085
    assert area.max() <= 1
    assert ratio.min() >= 3 / 4 - 1e-6
    assert ratio.max() <= 4 / 3 + 1e-6


def test_resized_crop_is_torchvisions_resized_crop() -> None:
    """A box on whole pixels, enlarged twice: bilinear, half-pixel centres; borders aside, where ours fades to black."""
    x = torch.rand(1, 3, 16, 16)
    top, left, side = 3, 5, 8
    centre = torch.tensor([[(left + side / 2) / 8 - 1, (top + side / 2) / 8 - 1]])
    ours = warp(x, torch.eye(2)[None] * (side / 16), centre)
    expected = TF.resize(x, [32, 32], antialias=False)[:, :, 2 * top : 2 * (top + side), 2 * left : 2 * (left + side)]
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_half_of_the_images_flip() -> None:
    x = images()[:1].expand(2000, -1, -1, -1)
    out = Augmentation(flip=True)(x, draws_of_epoch(2000, seed=0, epoch=0))
    plain, flipped = x[0] / 255, (x[0] / 255).flip(-1)
    num_flipped = sum(torch.equal(image, flipped) for image in out)
    assert num_flipped + sum(torch.equal(image, plain) for image in out) == 2000
    assert abs(num_flipped - 1000) < 100  # 4.5 standard deviations


def test_cutout_is_a_square_cut_at_the_borders() -> None:
    x = torch.zeros(3, 3, 16, 16)
    u = torch.tensor([[0.5, 0.5], [0.0, 0.0], [0.999, 0.5]])
    grey = (cutout(x, u, 8) == 0.5).all(dim=1)
    assert [int(g.sum()) for g in grey] == [64, 16, 40]
    assert grey[0, 4:12, 4:12].all()
    assert grey[1, :4, :4].all()

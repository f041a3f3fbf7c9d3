"""C-NET: its start, its normalisation, and what each control removes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mcd_cli.models.coordinator import Coordinator

N, K, L = 8, 2, 3
COSTS = 5 * torch.rand(N, K * L + 1, generator=torch.Generator().manual_seed(1))
X = torch.rand(N, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def cnet(arch: str = "resnet10-xxxs", **options: object) -> Coordinator:
    torch.manual_seed(0)
    return Coordinator(arch, K, L, mean=(0.5,) * 3, std=(0.25,) * 3, **options)  # type: ignore[arg-type]


def with_opinions(**options: object) -> tuple[Coordinator, Tensor]:
    """A C-NET that tells images apart, and its outputs."""
    g = cnet(**options)
    with torch.no_grad():
        for p in g.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    p = g(X, COSTS)
    assert p.std(dim=0).min() > 1e-3
    return g, p


@pytest.mark.parametrize(
    "arch", ["resnet10-xxxs", "resnet20", "wrn-16-2", "shufflenet-v2", "mobilenet-v2x2", "scalar", "losses"]
)
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_every_weight_starts_at_half_the_scale(arch: str, scale: float) -> None:
    g = cnet(arch, scale=scale)
    w = g.weigh(g(X, COSTS))
    assert w.shape == (N, K, L)
    assert torch.equal(w, torch.full_like(w, scale / 2))


def test_the_start_is_no_dead_end() -> None:
    """A zero head still gets a gradient, and its first step tells images apart."""
    g = cnet()
    optimizer = torch.optim.SGD(g.parameters(), lr=0.01)
    g.weigh(g(X, COSTS)).backward(torch.randn(N, K, L))
    optimizer.step()
    assert g.weigh(g(X, COSTS)).std(dim=0).min() > 1e-4


@pytest.mark.parametrize(("options", "total"), [({}, 1.5), ({"scale": 2.0}, 3.0), ({"total": 0.7}, 0.7)])
def test_normalised_weights_have_the_total_on_average(options: dict[str, float], total: float) -> None:
    g, p = with_opinions(normalise="mean", **options)
    w = g.weigh(p)
    torch.testing.assert_close(w.sum(dim=-1).mean(dim=0), torch.full((K,), total))
    assert w.std(dim=0).min() > 1e-3  # relative weights are kept
    torch.testing.assert_close(w[0, 0] / w[1, 0], p[0, 0] / p[1, 0])


@pytest.mark.parametrize(("options", "total"), [({}, 3.0), ({"scale": 2.0}, 6.0), ({"total": 1.5}, 1.5)])
def test_normalised_by_image_each_image_has_the_total(options: dict[str, float], total: float) -> None:
    g, p = with_opinions(normalise="image", **options)
    w = g.weigh(p)
    torch.testing.assert_close(w.sum(dim=-1), torch.full((N, K), total))
    torch.testing.assert_close(w[..., 0] / w[..., 1], p[..., 0] / p[..., 1])
    mean = cnet(normalise="image", control="mean", **options).weigh(p)
    torch.testing.assert_close(mean.sum(dim=-1), torch.full((N, K), total))


def test_normalisation_hides_growth_from_phi() -> None:
    """Along 'all weights grow', the normalised weights do not move: no gradient is left."""
    g = cnet(normalise="mean")
    size = torch.ones((), requires_grad=True)
    (g.weigh(size * with_opinions()[1].detach()) * torch.randn(N, K, L)).sum().backward()
    assert size.grad is not None
    assert abs(size.grad.item()) < 1e-5


def test_control_mean_gives_every_image_the_batch_mean() -> None:
    g, p = with_opinions(control="mean")
    torch.testing.assert_close(g.weigh(p), p.mean(dim=0).expand(N, K, L))


def test_control_shuffle_moves_the_weights_to_other_images() -> None:
    g, p = with_opinions(control="shuffle")
    order = torch.randperm(N)
    w = g.weigh(p, order)
    for i in range(N):
        assert torch.equal(w[i], p[order[i]])


def test_control_frozen_is_a_random_c_net() -> None:
    w = cnet(control="frozen")(X)
    assert w.std(dim=0).min() > 0
    assert (w - 0.5).abs().max() > 1e-3


def test_scalar_weighs_all_images_alike() -> None:
    g = cnet("scalar")
    assert sum(p.numel() for p in g.parameters()) == K * L
    with torch.no_grad():
        g.network.logits.copy_(torch.arange(6.0))
    torch.testing.assert_close(g(X, COSTS), torch.arange(6.0).sigmoid().view(K, L).expand(N, K, L))


def test_losses_is_a_small_network_that_sees_no_image() -> None:
    g = cnet("losses")
    with torch.no_grad():
        g.network.head.weight.normal_()
    w = g(X, COSTS)
    assert w.std(dim=0).min() > 1e-3
    assert torch.equal(w, g(1 - X, COSTS))
    assert not torch.equal(w, g(X, COSTS.roll(1, dims=1)))
    assert sum(p.numel() for p in g.parameters()) == 64 * (K * L + 1 + 1) + 65 * K * L


def test_losses_that_fall_all_alike_are_no_news() -> None:
    """What counts is an image's loss beside the batch's, on the scale of log(1 + loss)."""
    g = cnet("losses")
    with torch.no_grad():
        g.network.head.weight.normal_()
    torch.testing.assert_close(g(X, COSTS), g(X, (1 + COSTS).sqrt() - 1), atol=1e-4, rtol=1e-4)


def test_losses_apart_see_all_the_losses() -> None:
    g = cnet("losses", shared=False)
    assert g(X, COSTS).shape == (N, K, L)

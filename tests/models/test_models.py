"""The zoo against the published MACs and parameters, counted by hooks on convolutions and linear layers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from mcd_cli.errors import RunFailed, UserError
from mcd_cli.models import ARCHITECTURES, build, load_pretrained
from mcd_cli.models.resnet import Subsample
from mcd_cli.models.torchvision_zoo import adapts
from support.known import KNOWN

# He et al. 2016, Table 6, parameters with option A and 10 classes, in M.
OPTION_A = {
    "resnet20-a": 0.27,
    "resnet32-a": 0.46,
    "resnet44-a": 0.66,
    "resnet56-a": 0.85,
    "resnet110-a": 1.7,
}

SMALL_ZOO = [
    "resnet10-xxxs",
    "resnet10-m",
    "resnet20",
    "resnet20-a",
    "resnet8x4",
    "wrn-16-2",
    "shufflenet-v2",
    "mobilenet-v2x2",
]


def count_macs(network: nn.Module, image_size: int) -> int:
    """Multiply-adds of convolutions and linear layers: one per weight and output position."""
    total = 0

    def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += module.weight.numel() * (output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1)

    hooks = [m.register_forward_hook(add) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    network.eval()(torch.empty(1, 3, image_size, image_size, device="meta"))
    for hook in hooks:
        hook.remove()
    return total


def count_parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def on_meta(arch: str, num_classes: int) -> nn.Module:
    with torch.device("meta"):
        return build(arch, num_classes)


@pytest.mark.parametrize("arch", KNOWN)
def test_counts_are_the_published_ones(arch: str) -> None:
    macs_cifar, params_cifar, macs_tiny, params_tiny = KNOWN[arch]
    for classes, size, macs, params in (
        (100, 32, macs_cifar, params_cifar),
        (200, 64, macs_tiny, params_tiny),
    ):
        network = on_meta(arch, classes)
        assert count_parameters(network) == params
        half_a_unit = 0.5 * 10.0 ** -len(macs.partition(".")[2])
        assert abs(count_macs(network, size) / 1e6 - float(macs)) <= half_a_unit


def test_option_a_adds_no_parameters() -> None:
    assert count_parameters(on_meta("resnet20-a", 100)) == 275_572
    for arch, millions in OPTION_A.items():
        assert count_parameters(on_meta(arch, 10)) / 1e6 == pytest.approx(millions, abs=0.04)
        projections = (16 * 32 + 2 * 32) + (32 * 64 + 2 * 64)
        with_projection = count_parameters(on_meta(arch.removesuffix("-a"), 10))
        assert with_projection == count_parameters(on_meta(arch, 10)) + projections


def test_option_a_subsamples_and_pads_on_both_sides() -> None:
    x = torch.arange(2 * 2 * 5 * 4.0).view(2, 2, 5, 4) + 1
    out = Subsample(2, stride=2)(x)
    assert out.shape == (2, 4, 3, 2)
    assert torch.equal(out[:, 1:3], x[:, :, [0, 2, 4]][..., [0, 2]])
    assert not out[:, 0].any()
    assert not out[:, 3].any()


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_takes_every_size(arch: str) -> None:
    network = on_meta(arch, 7).eval()
    for size in (16, 28, 32, 48, 64, 96) if arch in SMALL_ZOO else (28, 96):  # those differ in depth or width alone
        assert network(torch.empty(2, 3, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("arch", SMALL_ZOO)
def test_it_learns(arch: str) -> None:
    torch.manual_seed(0)
    network = build(arch, 5).train()
    x, y = torch.randn(8, 3, 32, 32), torch.arange(8) % 5
    logits = network(x)
    assert logits.isfinite().all()
    torch.autograd.backward(nn.functional.cross_entropy(logits, y))
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    moved = [m.running_mean for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert all(mean is not None and mean.any() for mean in moved)
    with torch.no_grad():
        alone = network.eval()(x[:1])
        torch.testing.assert_close(alone, network(x)[:1], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("arch", [*SMALL_ZOO, "torchvision:resnet18@small"])
def test_first_weights_are_a_function_of_the_seed(arch: str) -> None:
    def weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build(arch, 5).parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


@pytest.mark.parametrize("arch", ["resnet34", "wrn-40-2", "shufflenet-v2", "mobilenet-v2x2"])
def test_first_weights_are_kaiming_normal(arch: str) -> None:
    torch.manual_seed(0)
    for module in build(arch, 5).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 10_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert module.bias is None
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert not module.bias.any()


def test_a_small_torchvision_resnet_is_the_zoos() -> None:
    theirs, ours = build("torchvision:resnet18@small", 10).eval(), build("resnet18", 10).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(theirs(x), ours(x))


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mnasnet0_5", "resnet18"])
def test_torchvisions_running_statistics_keep_up(name: str) -> None:
    """After forty batches of shifted images, a BatchNorm's statistics are theirs."""
    network = build(f"torchvision:{name}", 4).train()
    with torch.no_grad():
        for seed in range(40):
            network(5 + torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))
    first = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    stem = next(m for m in network.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        mean = stem(5 + torch.rand(64, 3, 32, 32)).mean(dim=(0, 2, 3))
    torch.testing.assert_close(first.running_mean, mean, rtol=0.1, atol=0.05)


TORCHVISION = torchvision.models.list_models(module=torchvision.models)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "densenet121", "googlenet", "inception_v3"])
def test_torchvision_classifiers(name: str) -> None:
    network = on_meta(f"torchvision:{name}", 13).eval()
    assert network(torch.empty(1, 3, 96, 96, device="meta")).shape == (1, 13)


# One of each family; the others differ in depth and width alone.
SMALL = [
    "densenet121",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "googlenet",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "resnet50",
    "resnext50_32x4d",
    "shufflenet_v2_x1_0",
    "squeezenet1_0",
    "squeezenet1_1",
    "wide_resnet50_2",
]


@pytest.mark.parametrize("name", SMALL)
def test_small_leaves_out_two_halvings(name: str) -> None:
    def widths(arch: str) -> list[int]:
        """Of every convolution's output, in order of execution."""
        seen: list[int] = []
        network = build(arch, 13).eval().to("meta")
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda _, __, out: seen.append(out.shape[-1]))
        assert network(torch.empty(1, 3, 128, 128, device="meta")).shape == (1, 13)
        return [width for width in seen if width > 1]  # those of 1 are squeeze-and-excitation's

    small, plain = widths(f"torchvision:{name}@small"), widths(f"torchvision:{name}")
    assert small[0] == 128
    assert plain[0] in (64, 63, 61)
    assert len(small) == len(plain)
    assert small[-1] // plain[-1] == 4


def test_small_is_offered_where_it_makes_sense() -> None:
    refused = ("alexnet", "convnext", "inception", "maxvit", "swin", "vgg", "vit")
    assert {n for n in TORCHVISION if not adapts(n)} == {n for n in TORCHVISION if n.startswith(refused)}
    for name in ("vit_b_16", "vgg11_bn", "inception_v3"):
        with pytest.raises(UserError, match=f"torchvision:{name} has no stem to adapt"):
            build(f"torchvision:{name}@small", 10)


@pytest.mark.parametrize(
    ("arch", "hint"),
    [
        ("resnet10-sx", "did you mean resnet10-"),
        ("torchvision:resnet35", "did you mean .*resnet3?[45]"),
        ("torchvision:resnet35@small", "did you mean .*resnet3?[45]"),
        ("torchvision:", "unknown torchvision architecture"),
    ],
)
def test_an_unknown_name_names_its_neighbours(arch: str, hint: str) -> None:
    with pytest.raises(UserError, match=hint):
        build(arch, 10)


def test_reading_the_table_imports_no_torch() -> None:
    script = (
        "import sys\nfrom mcd_cli.models import ARCHITECTURES\n"
        "assert ARCHITECTURES.check('torchvision:x') and len(ARCHITECTURES) > 20\n"
        "assert not {'torch', 'torchvision', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)


def test_pretrained_weights_fill_what_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's own loading code, on a file of its name laid into torch's cache; offline it is one line."""
    weights = torchvision.models.get_model_weights("squeezenet1_1").DEFAULT
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    network = build("torchvision:squeezenet1_1", 7)
    with pytest.raises(RunFailed, match=r"squeezenet1_1-.*checkpoints"):
        load_pretrained(network, "torchvision:squeezenet1_1")
    source = torchvision.models.squeezenet1_1(weights=None).state_dict()
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
    torch.save(source, tmp_path / "hub" / "checkpoints" / Path(weights.url).name)
    filled = load_pretrained(network, "torchvision:squeezenet1_1")
    equal = [key for key, value in network.state_dict().items() if torch.equal(value, source[key][: len(value)])]
    assert filled == len(source) - 2 == len([key for key in equal if not key.startswith("classifier")])


def refuse(*args: object, **options: object) -> None:
    raise OSError("no network")

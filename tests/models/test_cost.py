"""MACs, parameters and bytes: against torch's own counter, the published numbers and Table 3; `mcd profile`."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from mcd_cli.cli.profile import parse_shape
from mcd_cli.cli.profile import profile as profile_command
from mcd_cli.comparison.paper import TABLE_3, agrees
from mcd_cli.errors import UserError
from mcd_cli.models import ARCHITECTURES, build
from mcd_cli.models.cost import profile
from support.known import KNOWN


def flops(model: nn.Module, shape: tuple[int, ...]) -> int:
    """torch's own count of the operators that run, 2 FLOPs to a multiply-add."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *shape))
    return int(counter.get_total_flops())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One image through small layers: threads would only wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Mixed(nn.Module):
    """Grouped, dilated, transposed and one-dimensional convolutions, matrix products, everything free."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 3, padding=2, dilation=2, groups=3)
        self.twice = nn.Conv2d(6, 6, 1, bias=False)
        self.up = nn.ConvTranspose2d(6, 4, 2, stride=2)
        self.norm = nn.BatchNorm2d(4)
        self.flat = nn.Conv1d(4, 5, 3)
        self.group_norm = nn.GroupNorm(1, 5)
        self.unused = nn.Linear(7, 11)
        self.head = nn.Linear(5, 2)
        self.mix = nn.Parameter(torch.eye(5))

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.twice(F.relu6(self.twice(F.gelu(self.grouped(x))))))
        x = F.max_pool2d(F.silu(self.norm(self.up(x))), 2)
        x = torch.softmax(self.group_norm(self.flat(F.avg_pool2d(x, 2).flatten(2))), dim=-1)
        x = torch.sigmoid(x.transpose(1, 2).contiguous() @ self.mix)
        x = torch.bmm(x, x.transpose(1, 2)).softmax(-1) @ x
        logits: Tensor = self.head(x.mean(1) * 2 + 1)
        return logits


FAMILIES = {row.target.partition(":")[0]: name for name, row in ARCHITECTURES.items() if "110" not in name}


@pytest.mark.parametrize("arch", ["resnet10-s", "resnet20-a", *FAMILIES.values()])
def test_macs_are_half_of_torchs_flops(arch: str) -> None:
    model = build(arch, 7)
    cost = profile(model, (3, 16, 24))
    assert 2 * cost.macs == flops(model, (3, 16, 24))
    assert cost.uncounted == ()
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())


def test_macs_of_all_that_is_counted() -> None:
    model = Mixed()
    cost = profile(model, (3, 8, 8))
    assert 2 * cost.macs == flops(model, (3, 8, 8))
    assert cost.uncounted == ()
    # By hand: 6 outputs of 3×3 over 8×8; twice 6×6 over 8×8; transposed 6·4·2×2 over 8×8.
    own = {layer.name: layer for layer in cost.by_layer}
    assert own["grouped"].macs == 6 * 9 * 64
    assert own["twice"].macs == 2 * 36 * 64
    assert own["up"].macs == 6 * 4 * 4 * 64
    assert own["norm"].macs == 0
    assert own["norm"].params == 8
    assert own["unused"].params == 88
    assert own[""].params == 25
    assert sum(layer.macs for layer in cost.by_layer) == cost.macs
    assert sum(layer.params for layer in cost.by_layer) == cost.params


@pytest.mark.parametrize("arch", KNOWN)
def test_the_table_of_architectures(arch: str) -> None:
    macs, params, macs_tiny, params_tiny = KNOWN[arch]
    for known_macs, known_params, shape, num_classes in (
        (macs, params, (3, 32, 32), 100),
        (macs_tiny, params_tiny, (3, 64, 64), 200),
    ):
        cost = profile(build(arch, num_classes), shape)
        digits = len(known_macs.partition(".")[2])
        assert f"{cost.macs / 1e6:.{digits}f}" == known_macs
        assert cost.params == known_params


def test_what_nobody_counts_is_named() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(4, 4, batch_first=True)
            self.same = nn.Conv1d(4, 4, 3, padding="same")

        def forward(self, x: Tensor) -> Tensor:
            x = F.scaled_dot_product_attention(x, x, x)
            x = torch.baddbmm(x, x, x)
            x = F.interpolate(x[None], scale_factor=2, mode="bilinear")[0][..., :4]
            x, _ = self.lstm(x)
            out: Tensor = self.same(x.transpose(1, 2))
            return out

    named = {op.removeprefix("_") for op in profile(Odd(), (4, 4)).uncounted}
    assert named >= {"scaled_dot_product_attention", "baddbmm", "upsample_bilinear2d", "lstm"}
    assert len(named) == 5  # and the convolution with padding="same", whatever this torch calls it


def test_bytes_are_those_that_are_stored() -> None:
    class Stored(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 1)  # 6 + 2 numbers
            self.norm = nn.BatchNorm2d(2)  # 4 numbers, 4 in buffers, one 8-byte counter
            self.again = self.conv
            self.register_buffer("mean", torch.zeros(3), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.norm(self.again(x))
            return out

    cost = profile(Stored(), (3, 4, 4))
    assert cost.bytes == 4 * (8 + 4 + 4) + 8
    assert cost.params == 12
    assert profile(Stored().double(), (3, 4, 4)).bytes == cost.bytes  # counted as float32


def test_the_model_is_left_as_it_was() -> None:
    model = build("resnet10-xxxs", 5)
    model.get_submodule("layer1").eval()
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.get_rng_state()
    profile(model, (3, 8, 8))
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(rng, torch.get_rng_state())
    assert not any(module._forward_hooks for module in model.modules())


def test_the_filter_is_narrow() -> None:
    """Importing cost leaves no filter behind: the deprecated compiler still warns others."""
    assert not any("jit" in str(getattr(entry[1], "pattern", "")) for entry in warnings.filters)


@pytest.mark.parametrize(
    ("value", "printed", "same"),
    [
        (16_630_000, "16 M", True),  # truncated
        (2_860_000, "3 M", True),  # rounded
        (11_440_000, "12 M", False),
        (4_949_412, "4.92 M", False),
        (4_949_412, "4.95 M", True),
        (1_252_100, "1.25 M", True),
        (27_884, "28 K", True),
        (27_884, "29 K", False),
        (17_000_000, "16 M", False),
        (15_500_000, "16 M", True),
        (15_499_999, "16 M", False),
    ],
)
def test_agrees(value: int, printed: str, same: bool) -> None:
    assert agrees(value, printed) is same


def test_table_3_has_two_marked_cells(capsys: pytest.CaptureFixture[str]) -> None:
    profile_command(paper=True)
    printed = capsys.readouterr()
    for arch in TABLE_3:
        assert printed.out.count(f"\n{arch} ") == 2
    cells = re.findall(r"[\d.]+ [KM] \*", printed.out)
    assert cells == ["4.92 M *", "12 M *"]
    assert "resnet10 on CIFAR-100, 4,949,412, not 4.92 M" in printed.out
    assert "resnet10-xs on Tiny-ImageNet, 11.44 M, not 12 M" in printed.out
    assert "truncates" in printed.out
    assert "3x64x64, 200 classes" in printed.out
    assert "multiply-add" in printed.err


def test_profile_json_is_one_document_of_plain_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    profile_command(["resnet10-s"], input_shape="3x64x64", classes=200, by_layer=True, json_output=True)
    document = json.loads(capsys.readouterr().out)
    assert document["schema"] == 1
    (row,) = document["rows"]
    assert row["arch"] == "resnet10-s"
    tensors = build("resnet10-s", 200).state_dict().values()
    floats = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    assert (row["bytes"], row["bytes_of"]) == (
        4 * floats + 8 * sum(not t.is_floating_point() for t in tensors),
        "tensors",
    )
    assert row["input_shape"] == [3, 64, 64]
    assert row["num_classes"] == 200
    assert round(row["macs"] / 1e6, 2) == 16.63
    assert row["params"] == 90_352
    assert row["uncounted"] == []
    assert sum(layer["macs"] for layer in row["by_layer"]) == row["macs"]


def test_profile_prints_nothing_truncated(capsys: pytest.CaptureFixture[str]) -> None:
    profile_command(["resnet10-xxxs", "wrn-16-2"], classes=10, input_shape="3x16x16")
    out = capsys.readouterr().out
    assert "…" not in out
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["resnet10-xxxs", "wrn-16-2"]
    profile_command(["resnet10-xxxs"], by_layer=True)
    assert re.search(r"\ntotal +771,\d{3} +100.0 % +8,008", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("96", "write it like 3x96x96"),
        ("", "write it like"),
        ("3x96", "write it like"),
        ("3x-1x4", "write it like"),
        ("3x9.5x4", "write it like"),
        ("3x٣x4", "write it like"),
        ("3x999999x4", "write it like"),
        ("1x28x28", "write it like 3x28x28"),
        ("3x0x32", "between 1 and"),
        ("3x32x99999", "between 1 and"),
    ],
)
def test_bad_shapes_are_refused(text: str, why: str) -> None:
    with pytest.raises(UserError, match=why):
        parse_shape(text)


def test_profile_refuses_what_makes_no_sense() -> None:
    with pytest.raises(UserError, match="did you mean resnet10"):
        profile_command(["resnet10-z"])
    for options in ({"run": "runs/a"}, {"paper": True}):
        with pytest.raises(UserError, match="only one of them"):
            profile_command(["resnet10-s"], **options)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"name architectures \(mcd profile resnet10-s; .* \(--paper\)"):
        profile_command()
    with pytest.raises(UserError, match="need architectures"):
        profile_command(input_shape="3x64x64")
    with pytest.raises(UserError, match="--by-layer needs"):
        profile_command(by_layer=True)
    with pytest.raises(UserError, match="--classes 0"):
        profile_command(["resnet10-s"], classes=0)

"""Teacher files in the formats of well-known repositories, against the network that wrote them."""

from __future__ import annotations

import argparse
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mcd_cli.errors import UserError
from mcd_cli.models import ARCHITECTURES, build
from mcd_cli.models.teacher_file import load_teacher, save_model

State = dict[str, Tensor]


def source(arch: str, num_classes: int = 7, seed: int = 0) -> nn.Module:
    """A network whose every tensor matters: random BatchNorm parameters and statistics, too."""
    torch.manual_seed(seed)
    network = build(arch, num_classes).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 1.0)
    return network


def assert_same_function(path: Path, network: nn.Module, expected: str, **asked: Any) -> None:
    found = load_teacher(path, **asked)
    assert (found.arch, found.num_classes) == (expected, 7)
    assert not found.model.training
    assert all(p.dtype == torch.float32 and not p.requires_grad for p in found.model.parameters())
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), network(x), rtol=1e-5, atol=1e-5)


def renamed(state: Mapping[str, Tensor], *rules: tuple[str, str]) -> State:
    """Names through regular expressions, in order; the tensors keep their order."""
    new = {}
    for name, tensor in state.items():
        for pattern, to in rules:
            name = re.sub(pattern, to, name)
        new[name] = tensor
    assert len(new) == len(state)
    return new


def without_counters(state: Mapping[str, Tensor]) -> State:
    return {name: tensor for name, tensor in state.items() if "num_batches" not in name}


def prefixed(state: Mapping[str, Tensor], prefix: str) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


# --- names of other houses; the zoo's ResNets are named as torchvision's, timm's, chenyaofo's and CRD's are


def kuangliu(state: State) -> State:
    return renamed(state, (r"downsample", "shortcut"), (r"^fc", "linear"))


def weiaicunzai(state: State) -> State:
    return renamed(
        state,
        (r"^conv1\.", "conv1.0."),
        (r"^bn1\.", "conv1.1."),
        (r"^layer1", "conv2_x"),
        (r"^layer2", "conv3_x"),
        (r"^layer3", "conv4_x"),
        (r"^layer4", "conv5_x"),
        (r"(_x\.\d+)\.conv1\.", r"\1.residual_function.0."),
        (r"(_x\.\d+)\.bn1\.", r"\1.residual_function.1."),
        (r"(_x\.\d+)\.conv2\.", r"\1.residual_function.3."),
        (r"(_x\.\d+)\.bn2\.", r"\1.residual_function.4."),
        (r"downsample", "shortcut"),
    )


def hysts(state: State) -> State:
    """Stages and blocks counted from 1, a stem without numbers."""
    state = renamed(state, (r"^conv1\.", "conv."), (r"^bn1\.", "bn."))
    return renamed(
        {re.sub(r"^layer(\d)\.(\d+)", lambda m: f"stage{m[1]}.block{int(m[2]) + 1}", k): v for k, v in state.items()},
        (r"downsample\.0", "shortcut.conv"),
        (r"downsample\.1", "shortcut.bn"),
    )


def crd_wrn(state: State) -> State:
    """CRD's and xternalz' wide ResNet."""
    stages = {re.sub(r"^layers\.(\d)\.", lambda m: f"block{int(m[1]) + 1}.layer.", k): v for k, v in state.items()}
    return renamed(stages, (r"\.shortcut\.", ".convShortcut."))


def crd_shufflenet(state: State) -> State:
    """CRD's ShuffleNetV2: convolutions and norms of a unit counted through, left before right."""
    new: State = {}
    ends = {"stem.0": "conv1", "stem.1": "bn1", "last.0": "conv2", "last.1": "bn2", "fc": "linear"}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        if layer in ends:
            new[f"{ends[layer]}.{leaf}"] = tensor
            continue
        _, stage, unit, side, index = layer.split(".")
        position = {"branch1": ["0", "2"], "branch2": ["0", "3", "5"]}[side]
        norms = {"branch1": ["1", "3"], "branch2": ["1", "4", "6"]}[side]
        first = 3 if side == "branch2" and unit == "0" else 1
        part = f"conv{first + position.index(index)}" if index in position else f"bn{first + norms.index(index)}"
        new[f"layer{int(stage) + 1}.{unit}.{part}.{leaf}"] = tensor
    return new


def crd_mobilenet(state: State) -> State:
    return renamed(state, (r"^stem", "conv1"), (r"^last", "conv2"), (r"^layers", "blocks"), (r"^fc", "classifier.0"))


NAMINGS: list[tuple[str, Callable[[State], State]]] = [
    ("resnet10-s", kuangliu),
    ("resnet18", kuangliu),
    ("resnet18", weiaicunzai),
    ("resnet10-xs", weiaicunzai),
    ("resnet20", hysts),
    ("resnet32-a", kuangliu),
    ("resnet8x4", lambda state: state),
    ("wrn-16-2", crd_wrn),
    ("wrn-40-1", crd_wrn),
    ("shufflenet-v2", crd_shufflenet),
    ("mobilenet-v2x2", crd_mobilenet),
]


@pytest.mark.parametrize(("arch", "naming"), NAMINGS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_names_of_other_houses(tmp_path: Path, arch: str, naming: Callable[[State], State], suffix: str) -> None:
    network = source(arch)
    state = naming(without_counters(network.state_dict()))
    path = tmp_path / f"teacher.{suffix}"
    if suffix == "pth":
        torch.save(state, path)
    else:
        save_file(state, path)  # it sorts by name: the network's own order is lost
    assert_same_function(path, network, arch)


@pytest.mark.parametrize("arch", sorted(ARCHITECTURES))
def test_every_architecture_is_recognised_as_itself(tmp_path: Path, arch: str) -> None:
    network = build(arch, 5)
    torch.save({"state_dict": network.state_dict(), "epoch": 3}, tmp_path / "t.pt")
    found = load_teacher(tmp_path / "t.pt", num_classes=5)
    assert (found.arch, found.num_classes) == (arch, 5)
    ours, theirs = found.model.state_dict(), network.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_unknown_names_are_read_by_order(tmp_path: Path) -> None:
    network = source("resnet20-a")
    state = {
        f"{chr(122 - i // 26)}{chr(122 - i % 26)}.{name.rpartition('.')[2]}": tensor
        for i, (name, tensor) in enumerate(without_counters(network.state_dict()).items())
    }
    torch.save(state, tmp_path / "t.pt")
    assert_same_function(tmp_path / "t.pt", network, "resnet20-a")
    torch.save(dict(sorted(state.items())), tmp_path / "sorted.pt")  # an order that says nothing
    with pytest.raises(UserError, match="fits no known architecture"):
        load_teacher(tmp_path / "sorted.pt")


# --- wrappers

SGD = {"state": {0: {"momentum_buffer": torch.zeros(16, 3, 3, 3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}

WRAPPERS: dict[str, Callable[[State], Any]] = {
    "kuangliu": lambda s: {"net": prefixed(kuangliu(s), "module."), "acc": 91.2, "epoch": 7},
    "akamaster": lambda s: {"state_dict": prefixed(kuangliu(without_counters(s)), "module."), "best_prec1": 91.73},
    "crd": lambda s: {"epoch": 240, "model": s, "best_acc": torch.tensor(72.0), "optimizer": SGD},
    "options": lambda s: {"opt": argparse.Namespace(lr=0.1, name="x"), "model_state_dict": s, "acc": np.float64(0.7)},
    "numpy": lambda s: {"best": np.float32(0.7), "n": np.int64(3), "dtype": np.dtype("float32"), "weights": s},
    "timm": lambda s: {"arch": "resnet20", "state_dict": s, "state_dict_ema": s, "version": 2},
    "lightning": lambda s: {"state_dict": prefixed(s, "model.backbone."), "hyper_parameters": {"lr": 0.1}},
    "compiled": lambda s: prefixed(s, "_orig_mod.module."),
    "compiled_inside": lambda s: {"model": {"module": prefixed(s, "module._orig_mod.")}},
    "encoder": lambda s: {
        ("classifier." + k.removeprefix("fc.") if k.startswith("fc") else "encoder." + k): v for k, v in s.items()
    },
    "averaged": lambda s: {"ema": {"n_averaged": torch.tensor(3), **prefixed(s, "module.")}},
    "profiled": lambda s: {**s, "total_ops": torch.zeros(1), "layer1.total_params": torch.zeros(1)},
    "lists": lambda s: {"student": {"params": s}, "history": [1.0, 2.0]},
    "parameters": lambda s: {k: nn.Parameter(v) if v.is_floating_point() else v for k, v in s.items()},
    "own_name": lambda s: prefixed(s, "resnet."),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_wrappers(tmp_path: Path, wrapper: str, legacy: bool) -> None:
    network = source("resnet20")
    content = WRAPPERS[wrapper](network.state_dict())
    torch.save(content, tmp_path / "t.pth.tar", _use_new_zipfile_serialization=not legacy)
    assert_same_function(tmp_path / "t.pth.tar", network, "resnet20", num_classes=7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_widths_become_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    network = source("resnet10-s")
    torch.save(network.to(dtype).state_dict(), tmp_path / "t.bin")
    assert_same_function(tmp_path / "t.bin", network.float(), "resnet10-s")


def test_several_networks_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    teacher, student = source("resnet20"), source("resnet10-s")
    ema = source("resnet20", seed=1)
    torch.save({"model": teacher.state_dict(), "ema": ema.state_dict()}, path)
    with pytest.raises(UserError, match=r"several networks: model \(resnet20\), ema \(resnet20\); save the right one"):
        load_teacher(path)
    both = prefixed(teacher.state_dict(), "teacher.") | prefixed(student.state_dict(), "student.")
    torch.save({"state_dict": both}, path)
    with pytest.raises(UserError, match=r"state_dict.teacher \(resnet20\), state_dict.student \(resnet10-s\)"):
        load_teacher(path)
    assert_same_function(path, teacher, "resnet20", arch="resnet20")
    assert_same_function(path, student, "resnet10-s", arch="resnet10-s")
    torch.save({"model": teacher.state_dict(), "discriminator": nn.Linear(3, 4).state_dict()}, path)
    assert_same_function(path, teacher, "resnet20")


# --- torchvision


@pytest.mark.parametrize(
    "arch",
    ["resnet18", "squeezenet1_0", "squeezenet1_0@small", "swin_t", "googlenet"],
)
def test_torchvision_is_recognised(tmp_path: Path, arch: str) -> None:
    network = build(f"torchvision:{arch}", 7).eval()
    torch.save({"state_dict": network.state_dict()}, tmp_path / "t.pt")
    found = load_teacher(tmp_path / "t.pt")
    assert (found.arch, found.num_classes) == (f"torchvision:{arch}", 7)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(found.model(x), network(x))


def test_auxiliary_heads_are_left_out(tmp_path: Path) -> None:
    network = build("torchvision:googlenet", 1000).eval()
    auxiliary = {"aux1.conv.conv.weight": torch.zeros(128, 512, 1, 1), "aux2.fc2.bias": torch.zeros(1000)}
    torch.save(network.state_dict() | auxiliary, tmp_path / "t.pth")
    assert load_teacher(tmp_path / "t.pth").arch == "torchvision:googlenet"


def test_a_resnet50_of_kuangliu_is_torchvisions(tmp_path: Path) -> None:
    network = source("torchvision:resnet50@small")
    torch.save({"net": prefixed(kuangliu(network.state_dict()), "module.")}, tmp_path / "t.pth")
    assert_same_function(tmp_path / "t.pth", network, "torchvision:resnet50@small")


def test_equal_shapes_and_another_function_ask_for_the_architecture(tmp_path: Path) -> None:
    network = source("torchvision:mobilenet_v2@small")
    torch.save(network.state_dict(), tmp_path / "t.pth")
    with pytest.raises(UserError, match=r"mobilenet_v2 or torchvision:mobilenet_v2@small, .* --teacher-arch"):
        load_teacher(tmp_path / "t.pth")
    arch = "torchvision:mobilenet_v2@small"
    assert_same_function(tmp_path / "t.pth", network, arch, arch=arch)


def test_other_torchvision_families_need_its_names(tmp_path: Path) -> None:
    arch = "torchvision:mnasnet0_5"
    network = source(arch)
    torch.save(renamed(network.state_dict(), (r"^layers", "stages"), (r"^classifier", "head")), tmp_path / "t.pth")
    refused(tmp_path / "t.pth", "fits no known architecture")
    assert_same_function(tmp_path / "t.pth", network, arch, arch=arch)


# --- what does not fit


def refused(path: Path, match: str, **asked: Any) -> str:
    with pytest.raises(UserError, match=match) as caught:
        load_teacher(path, **asked)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    assert caught.value.exit_code == 2
    return message


def test_a_given_architecture_that_does_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    torch.save(source("resnet10-m").state_dict(), path)
    refused(path, r"not fit resnet10-s: conv1.weight is \[16, 3, 3, 3\], expected \[8, 3, 3, 3\]", arch="resnet10-s")
    refused(path, r"does not fit resnet18: conv1.weight is \[16, 3, 3, 3\]", arch="resnet18")
    torch.save(source("resnet20-a").state_dict(), path)
    refused(path, r"does not fit resnet20: layer2.0.downsample.0.weight \[32, 16, 1, 1\] is missing", arch="resnet20")
    refused(
        path,
        r"does not fit wrn-16-2: layer1.0.conv1.weight is \[16, 16, 3, 3\], but layers.0.0.conv1.weight is \[32,",
        arch="wrn-16-2",
    )
    with pytest.raises(UserError, match="unknown architecture 'resnet21'; did you mean"):
        load_teacher(path, arch="resnet21")
    torch.save({**source("resnet20").state_dict(), "mean": torch.zeros(1, 3, 1, 1)}, path)
    refused(path, "does not fit resnet20: it has the extra tensor mean", arch="resnet20")


def test_another_number_of_classes(tmp_path: Path) -> None:
    torch.save(source("resnet20").state_dict(), tmp_path / "t.pt")
    refused(tmp_path / "t.pt", r"has 7 classes, but the data set has 10", num_classes=10)


def test_what_fits_nothing_is_described(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    state = source("resnet20").state_dict()
    torch.save({**state, "extra.weight": torch.zeros(3, 3)}, path)
    refused(path, r"fits no known .*\(\d+ tensors, first convolution \[16, 3, 3, 3\], last .*\); nearest: resnet20")
    torch.save({"weight": torch.zeros(9, 9), "bias": torch.zeros(9)}, path)
    refused(path, r"no convolution, last linear layer \[9, 9\]\); export it to ONNX")
    for nothing in ({"epoch": 3, "optimizer": SGD}, [1, 2], torch.zeros(3), {}):
        torch.save(nothing, path)
        refused(path, "has no network weights")


def test_wrong_values(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    state = source("resnet20").state_dict()
    torch.save(state | {"fc.bias": torch.full((7,), float("nan"))}, path)
    refused(path, "fc.bias has NaN or infinite values")
    torch.save(state | {"fc.bias": torch.full((7,), 1e300, dtype=torch.float64)}, path)
    refused(path, "fc.bias has NaN or infinite values")
    torch.save(state | {"fc.bias": torch.zeros(7, dtype=torch.int8)}, path)
    refused(path, "fc.bias is int8 .*save it as float32")
    torch.save(state | {"fc.bias": torch.zeros(7, dtype=torch.complex64)}, path)
    refused(path, "fc.bias is complex64")
    torch.save(state | {"bn1.running_var": torch.full((16,), -1.0)}, path)
    refused(path, "bn1.running_var has negative variances")


# --- hostile and damaged files


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('a pickle was executed')",))


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
@pytest.mark.parametrize("content", [Bomb(), {"state_dict": Bomb()}, nn.Conv2d(3, 4, 3), {"model": nn.Linear(2, 2)}])
def test_no_pickle_is_executed(tmp_path: Path, content: Any, legacy: bool) -> None:
    torch.save(content, tmp_path / "t.pt", _use_new_zipfile_serialization=not legacy)
    refused(tmp_path / "t.pt", r"Python objects \([\w.]+\), not weights; save .* torch.save\(model.state_dict\(\)")


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore:.*torch.jit:FutureWarning")
def test_torchscript_is_named(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Conv2d(3, 4, 3), torch.zeros(1, 3, 8, 8)), tmp_path / "t.pt")
    refused(tmp_path / "t.pt", r"is a TorchScript program; save only the weights")


FOREIGN: dict[str, tuple[bytes, str]] = {
    "empty.pt": (b"", "is empty"),
    "text.pt": (b"epoch 3\n" * 200, "seems to be text"),
    "page.pth": (b"<!DOCTYPE html><html>" + "Ä".encode() * 600, "seems to be text, a web page"),
    "lfs.pt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n", "git-lfs pointer; run git lfs pull"),
    "keras.pt": (b"\x89HDF\r\n\x1a\n" + bytes(100), "seems to be an HDF5 file"),
    "packed.pt": (b"\x1f\x8b\x08" + bytes(100), "gzip archive; unpack it first"),
    "noise.pt": (bytes(range(251, 1, -1)), "is not a known weights file"),
    "pickle.pt": (pickle.dumps({"a": 1}), "a Python pickle not written by torch.save"),
    "noise.onnx": (bytes(range(251, 1, -1)), "is not a valid ONNX file"),
    "header.safetensors": (struct.pack("<Q", 9_000) + b"{}" + bytes(20), "damaged safetensors file"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files_are_named(tmp_path: Path, name: str) -> None:
    content, match = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    refused(tmp_path / name, match)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    refused(tmp_path / "t.pt", "cannot be read: No such file")
    refused(tmp_path, "cannot be read: Is a directory")


def test_archives_that_are_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("images/1.png", b"x")
    refused(path, "a zip archive without a torch file's data")
    torch.save(source("resnet20").state_dict(), tmp_path / "good.pt")
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in good.namelist():
            archive.writestr(member, good.read(member))
    refused(path, "was compressed after torch.save")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damage_is_told_in_one_line_or_changes_nothing_but_values(tmp_path: Path, kind: str) -> None:
    whole, path = tmp_path / "whole.pt", tmp_path / "t.pt"
    state = source("resnet10-xxxs").state_dict()
    if kind == "safetensors":
        save_file(state, whole)
    else:
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
    content = whole.read_bytes()
    for size in [1, 5, 20, 600, len(content) // 2, len(content) - 1]:
        path.write_bytes(content[:size])
        refused(path, "t.pt")
    random = np.random.default_rng(0)
    # Half of the flips in the first part, where the names and shapes stand.
    places = [*random.integers(0, 4000, 40), *random.integers(0, len(content), 40)]
    survived, lines = 0, set()
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        try:
            load_teacher(path)
            survived += 1
        except UserError as refusal:
            lines.add(str(refusal).count("\n") + 1)
    assert lines == {1}
    if kind == "zip":  # its checksums cover the tensors; what they do not cover is padding and file attributes
        assert survived < len(places) / 4


def test_no_tensor_claims_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "t.pt"
    state = source("resnet20", 7).state_dict()
    one = torch.zeros(1)
    giant = {"fc.weight": one.expand(200_000_000_000, 64), "fc.bias": one.expand(200_000_000_000)}
    torch.save(state | giant, path)
    assert path.stat().st_size < 2_000_000
    refused(path, r"fc.weight \[200000000000, 64\] is larger than the file")
    legacy = tmp_path / "legacy.pt"
    torch.save(state, legacy, _use_new_zipfile_serialization=False)
    content = legacy.read_bytes()
    claim = b"K\x07"  # numel of fc.bias, as the pickle has it
    assert claim in content
    legacy.write_bytes(content.replace(claim, b"K\xff"))
    refused(legacy, "legacy.pt")


def test_a_storage_that_claims_its_neighbours(tmp_path: Path) -> None:
    """The element count in the pickle is edited; torch's own reader would trust it."""
    torch.save({"conv.weight": torch.zeros(250, 1, 1, 1)}, tmp_path / "good.pt")
    path = tmp_path / "t.pt"
    with zipfile.ZipFile(tmp_path / "good.pt") as good, zipfile.ZipFile(path, "w") as archive:
        for member in good.namelist():
            content = good.read(member)
            if member.endswith("data.pkl"):
                assert content.count(b"K\xfa") == 2  # of the storage, and in the shape
                content = content.replace(b"K\xfa", b"J\x00\xca\x9a\x3b")  # a thousand million
            archive.writestr(member, content)
    refused(path, "damaged")


# --- our own files


def test_own_files_state_their_architecture(tmp_path: Path) -> None:
    network = source("torchvision:mobilenet_v2@small")
    about = {
        "num_classes": 7,
        "arch": "torchvision:mobilenet_v2@small",
        "input_shape": [3, 32, 32],
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
    }
    save_model(tmp_path / "a.safetensors", network.state_dict(), about)
    assert_same_function(tmp_path / "a.safetensors", network, about["arch"])  # type: ignore[arg-type]
    assert load_teacher(tmp_path / "a.safetensors").metadata == about
    scrambled = dict(reversed(list(network.state_dict().items())))
    save_model(tmp_path / "b.safetensors", scrambled, dict(reversed(about.items())))
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors", "b.safetensors"]
    save_model(tmp_path / "c.safetensors", network.state_dict(), about | {"arch": "resnet18"})
    refused(tmp_path / "c.safetensors", "does not fit resnet18")
    assert_same_function(tmp_path / "c.safetensors", network, about["arch"], arch=about["arch"])  # type: ignore[arg-type]


def test_a_saved_model_is_plain_safetensors(tmp_path: Path) -> None:
    tied = torch.arange(6.0)
    save_model(tmp_path / "m", {"a": tied.view(2, 3).T, "b": tied}, {"arch": "x", "classes": ["Käse", "b"]})
    tensors = load_file(tmp_path / "m")
    assert torch.equal(tensors["a"], tied.view(2, 3).T)
    assert torch.equal(tensors["b"], tied)
    content = (tmp_path / "m").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert json.loads(header["__metadata__"]["mcd"]) == {"arch": "x", "classes": ["Käse", "b"]}
    assert list(header["__metadata__"]) == ["mcd"]


@pytest.mark.parametrize("text", ["{", "[]", '{"arch": 3, "num_classes": 7}', '{"arch": "resnet20"}', "null"])
def test_damaged_metadata(tmp_path: Path, text: str) -> None:
    save_file(source("resnet20").state_dict(), tmp_path / "t.safetensors", metadata={"mcd": text})
    refused(tmp_path / "t.safetensors", "has damaged metadata")


def test_loading_leaves_the_random_generator_alone(tmp_path: Path) -> None:
    for arch in ("resnet20", "torchvision:swin_t"):
        torch.save(build(arch, 7).state_dict(), tmp_path / "t.pt")
        torch.manual_seed(5)
        before = torch.get_rng_state()
        load_teacher(tmp_path / "t.pt")
        assert torch.equal(torch.get_rng_state(), before)


# --- ONNX


def onnx_file(path: Path, *, batch: Any = "n", size: Any = 8, classes: Any = 7, end: str = "", **odd: Any) -> nn.Module:
    """A graph by hand: 3×3 convolution, ReLU, global pool, linear; returns the same network in torch."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7)
    ).eval()
    tensors = {name.replace(".", "_"): t.detach().numpy() for name, t in network.named_parameters()}
    nodes = [
        helper.make_node("Conv", ["x", "0_weight", "0_bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "4_weight", "4_bias"], ["z"], transB=1),
        *([helper.make_node(end, ["z"], ["y"])] if end else []),
    ]
    element = odd.get("element", TensorProto.FLOAT)
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("x", element, odd.get("input_shape", [batch, 3, size, size]))],
        [helper.make_tensor_value_info("y" if end else "z", TensorProto.FLOAT, [batch, classes])],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), str(path))
    return network


@pytest.mark.parametrize("batch", ["n", 1, 4])
@pytest.mark.parametrize("classes", [7, "c"])
@pytest.mark.parametrize("size", [8, "s"])
def test_onnx_is_the_network(tmp_path: Path, batch: Any, classes: Any, size: Any) -> None:
    network = onnx_file(tmp_path / "t.onnx", batch=batch, classes=classes, size=size)
    found = load_teacher(tmp_path / "t.onnx", num_classes=7)
    assert (found.arch, found.num_classes) == ("onnx", 7)
    assert not found.model.training
    assert list(found.model.parameters()) == []
    for n in (1, 4, 6):
        x = torch.randn(n, 3, 8, 8).to(memory_format=torch.channels_last)
        with torch.no_grad():
            torch.testing.assert_close(found.model(x), network(x), rtol=1e-5, atol=1e-5)


def test_onnx_that_is_no_teacher(tmp_path: Path) -> None:
    path = tmp_path / "t.onnx"
    onnx_file(path, end="Softmax")
    refused(path, "ends with a Softmax")
    onnx_file(path)
    refused(path, "has 7 classes, but the data set has 3", num_classes=3)
    with pytest.raises(UserError, match="takes 8×8 images, but the data set has 32×32"):
        load_teacher(path).model(torch.zeros(1, 3, 32, 32))
    content = path.read_bytes()
    for size in (3, 30, len(content) // 2, len(content) - 2):
        path.write_bytes(content[:size])
        refused(path, "t.onnx")
    path.rename(tmp_path / "misnamed.pt")
    (tmp_path / "misnamed.pt").write_bytes(content)
    assert load_teacher(tmp_path / "misnamed.pt").arch == "onnx"

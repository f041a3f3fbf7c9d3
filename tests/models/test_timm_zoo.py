"""timm's networks as students and teachers: a training step of each of 20 families, and weights from a local cache."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

from mcd_cli.errors import RunFailed, UserError
from mcd_cli.models import build, load_pretrained

timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

FAMILIES = [
    "resnet10t",
    "mobilenetv3_small_050",
    "efficientnet_lite0",
    "mobilevit_xxs",
    "convnext_atto",
    "regnetx_002",
    "ghostnet_050",
    "tinynet_e",
    "mobilenetv4_conv_small_035",
    "edgenext_xx_small",
    "fastvit_t8",
    "repvgg_a0",
    "poolformer_s12",
    "xcit_nano_12_p16_224",
    "densenet121",
    "lcnet_035",
    "hardcorenas_a",
    "repghostnet_050",
    "dla46_c",
    "resnet18",
]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_of_each_family(name: str) -> None:
    """At 64 px; C-NET's forward-mode derivative exists, and agrees with the change of the loss along the step."""
    torch.manual_seed(0)
    network = build(f"timm:{name}", 5).double().eval()
    images, labels = torch.rand(4, 3, 64, 64, dtype=torch.double), torch.tensor([0, 1, 2, 3])
    parameters = dict(network.named_parameters())

    def loss(values: dict[str, torch.Tensor]) -> torch.Tensor:
        return functional.cross_entropy(torch.func.functional_call(network, values, (images,)), labels)

    gradient = torch.func.grad(loss)(parameters)
    _, slope = torch.func.jvp(loss, (parameters,), (gradient,))
    squares = sum(float((g.detach() ** 2).sum()) for g in gradient.values())
    assert float(slope.detach()) == pytest.approx(squares, rel=1e-6)
    assert squares > 0


def test_a_size_that_it_cannot_take_is_one_line() -> None:
    network = build("timm:vit_tiny_patch16_224", 5)
    with pytest.raises(AssertionError, match="height"):
        network(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("timm:convnext_ato", "unknown timm architecture 'convnext_ato'; did you mean convnext_"),
        ("timm:convnext_atto.d3_in1k", "unknown timm weights 'convnext_atto.d3_in1k'; did you mean convnext_atto.d2"),
    ],
)
def test_an_unknown_name_names_its_neighbours(arch: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(arch, 10)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub, offline."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path


def keep(hub: Path, repository: str, name: str, content: bytes | dict[str, torch.Tensor]) -> None:
    """Put a file where the Hub's own code keeps what it has downloaded."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        (snapshot / name).write_bytes(content)
    else:
        save_file(content, os.fspath(snapshot / name))


def test_published_weights_fill_all_but_the_head(hub: Path) -> None:
    with pytest.raises(RunFailed, match=r"the Hugging Face Hub cannot be reached.*HF_HOME"):
        load_pretrained(build("timm:mobilenetv3_small_050", 7), "timm:mobilenetv3_small_050")
    source = timm.create_model("mobilenetv3_small_050").state_dict()
    keep(hub, "timm/mobilenetv3_small_050.lamb_in1k", "model.safetensors", source)
    network = build("timm:mobilenetv3_small_050", 7)
    filled = load_pretrained(network, "timm:mobilenetv3_small_050")
    equal = [key for key, value in network.state_dict().items() if torch.equal(value, source[key])]
    assert filled == len(source) - 2 == len(equal)


def test_a_repository_of_the_hub(hub: Path) -> None:
    config = {"architecture": "resnet10t", "num_classes": 6, "pretrained_cfg": {"num_classes": 6, "classifier": "fc"}}
    source = timm.create_model("resnet10t", num_classes=6).state_dict()
    with pytest.raises(RunFailed, match="someone/flowers: the Hugging Face Hub cannot be reached"):
        build("hf-hub:someone/flowers", 6)
    keep(hub, "someone/flowers", "config.json", json.dumps(config).encode())
    keep(hub, "someone/flowers", "model.safetensors", source)
    network = build("hf-hub:someone/flowers", 6)
    assert load_pretrained(network, "hf-hub:someone/flowers") == len(source)
    assert all(torch.equal(value, source[key]) for key, value in network.state_dict().items())


def test_no_published_weights() -> None:
    with pytest.raises(UserError, match="timm has no weights of coatnet_pico_rw_224"):
        load_pretrained(torch.nn.Linear(1, 1), "timm:coatnet_pico_rw_224")

"""timm's classifiers by name, and those on the Hugging Face Hub by repository; untrained or with published weights.

Weights are read from safetensors files only, which cannot execute code.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from mcd_cli.errors import RunFailed, UserError, reason_of, unknown

WEIGHTS = "model.safetensors"


def names() -> list[str]:
    """The names of timm's architectures, without the tags of their weights."""
    found: list[str] = _timm().list_models()
    return found


def build(name: str, num_classes: int) -> nn.Module:
    """timm's NAME, or the network of USER/REPO, with random weights: images [n, 3, H, W] → logits [n, num_classes].

    Attention is computed in plain operations: the fused ones have no forward-mode derivative, which C-NET needs.
    Raises UserError for an unknown name, and RunFailed if the repository's configuration cannot be read.
    """
    timm = _timm()
    timm.layers.set_fused_attn(False)
    with _reasons(name):
        network: nn.Module = timm.create_model(_known(name), pretrained=False, num_classes=num_classes)
    return network


def pretrained(name: str) -> dict[str, torch.Tensor]:
    """The published weights of NAME or NAME.TAG, or of USER/REPO, downloaded into the Hub's cache (HF_HOME).

    Raises UserError if none are published, and RunFailed if they cannot be downloaded.
    """
    from huggingface_hub import hf_hub_download

    timm = _timm()
    known = _known(name)
    repository = name if "/" in name else getattr(timm.get_pretrained_cfg(known), "hf_hub_id", None)
    if not repository:
        raise UserError(f"timm has no weights of {name}; train it without teacher.pretrained")
    with _reasons(name):
        file = hf_hub_download(repository, WEIGHTS)
        network = timm.create_model(known, pretrained=True, pretrained_cfg_overlay={"file": file, "source": None})
    state: dict[str, torch.Tensor] = network.state_dict()
    return state


def _timm() -> Any:
    try:
        import timm
    except ImportError:
        raise UserError("timm:NAME and hf-hub:USER/REPO need the package timm: pip install 'mcd-cli[timm]'") from None
    return timm


def _known(name: str) -> str:
    """The name as timm's create_model takes it."""
    if "/" in name:
        return f"hf-hub:{name}"
    plain, _, tag = name.partition(".")
    timm = _timm()
    if not timm.is_model(plain):
        raise unknown("timm architecture", plain, names())
    if tag and name not in (tags := timm.list_pretrained(f"{plain}.*")):
        raise unknown("timm weights", name, tags)
    return name


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Turns what the Hub and its network raise into one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        yield
    except LocalEntryNotFoundError:
        raise RunFailed(
            f"{name}: the Hugging Face Hub cannot be reached, and its files are not in the cache; "
            "download them where there is a network, and point HF_HOME to that cache"
        ) from None
    except HfHubHTTPError as error:
        raise UserError(
            f"{name}: the Hugging Face Hub has no such file, or only for others ({reason_of(error)})"
        ) from None
    except (OSError, RuntimeError, ValueError) as error:
        raise RunFailed(f"{name}: timm cannot build or load it ({reason_of(error)})") from None

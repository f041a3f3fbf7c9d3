"""Normalises the many ways in which repositories wrap and name the same weights."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

from torch import Tensor

T = TypeVar("T")
Shape = tuple[int, ...]
Key = tuple[Any, ...]

# Modules that wrap a network and thus prefix its parameter names.
WRAPPERS = frozenset(
    [
        "module",
        "_orig_mod",
        "model",
        "net",
        "network",
        "backbone",
        "encoder",
        "student",
        "teacher",
        "ema",
        "model_ema",
        "ema_model",
        "classifier_model",
        "base_model",
        "online",
    ]
)
# Parts of a checkpoint that are not networks.
TRAINING = re.compile(r"optim|sched|scaler|momentum|criterion|loss|hyper|rng|queue", re.IGNORECASE)
# Counters, and heads that are used only in training.
NO_WEIGHTS = re.compile(
    r"(^|\.)(num_batches_tracked|n_averaged|total_ops|total_params|_extra_state)$|(^|\.)(AuxLogits|aux[12])\."
)
DEEPEST = 50  # parts of a dotted name; no real network nests its modules deeper
LONGEST_NAME = 1000  # characters
SHORTCUT = re.compile(r"downsample|shortcut|skip|identity", re.IGNORECASE)
CONTAINERS = frozenset(["features", "layers", "layer", "blocks", "stages"])


def networks(
    content: Any, above: tuple[str, ...] = (), seen: set[int] | None = None
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yields every network in a file's content: its place, and its tensors by name without wrapper prefixes.

    seen: ids of the visited objects, because a pickle can contain the same object many times, even inside itself.
    Raises ValueError for names or nesting that no network has.
    """
    seen = set() if seen is None else seen
    if not isinstance(content, Mapping) or id(content) in seen:
        return
    seen.add(id(content))
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    longest = max(named, key=len, default="")
    if len(longest) > LONGEST_NAME or max((n.count(".") for n in named), default=0) > DEEPEST or len(above) > DEEPEST:
        raise ValueError(f"has tensor names that no network has ({'.'.join((*above, longest))[:80]!r}...)")
    place = ".".join(above)
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if any(tensor.ndim >= 2 for tensor in tensors.values()):
        for part, network in unwrapped(tensors).items():
            yield ".".join(filter(None, (place, part))), network
    for name, value in named.items():
        if not TRAINING.search(name):
            yield from networks(value, (*above, name), seen)


def unwrapped(tensors: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """The tensors without wrapper prefixes: {"": one network}, or several networks under the names that differ."""
    weights = {name: tensor for name, tensor in tensors.items() if not NO_WEIGHTS.search(name)}
    stripped = {name: _strip(name) for name in weights}
    if len(set(stripped.values())) == len(stripped):
        short = {stripped[name]: tensor for name, tensor in weights.items()}
        prefixes = {name.split(".")[0] for name in short}
        if len(prefixes) == 1 and all(name.count(".") > 1 for name in short):
            return unwrapped({name.partition(".")[2]: tensor for name, tensor in short.items()})
        return {"": short}
    parts: defaultdict[str, dict[str, T]] = defaultdict(dict)
    for name, tensor in weights.items():
        first, _, rest = name.partition(".")
        parts[first][rest or first] = tensor
    return {
        ".".join(filter(None, (first, inner))): network
        for first, part in parts.items()
        for inner, network in (unwrapped(part) if first in WRAPPERS else {"": part}).items()
    }


def _strip(name: str) -> str:
    while (split := name.split(".", 1))[0] in WRAPPERS and "." in split[-1]:
        name = split[1]
    return name


def canonical(shapes: Mapping[str, Shape]) -> dict[Key, str] | None:
    """Canonical keys: two naming schemes for the same network give the same keys. None if the names are ambiguous.

    Layers of the same kind and shape, in the same role (trunk, shortcut, or outside of the blocks), are ordered by
    the numbers in their names: layer2.0.conv1 and conv3_x.0.residual_function.0 are both the first 3×3 from 16 to
    32 channels. If two such layers cannot be ordered, the names are ambiguous.
    """
    layers: defaultdict[str, dict[str, Shape]] = defaultdict(dict)
    for name, shape in shapes.items():
        layer, _, leaf = name.rpartition(".")
        if leaf not in ("weight", "bias", "running_mean", "running_var"):
            return None
        layers[layer][leaf] = shape
    blocks = _blocks(layers)
    kinds: defaultdict[Key, list[str]] = defaultdict(list)
    for layer, leaves in layers.items():
        role = "outer" if _group(layer) not in blocks else "shortcut" if SHORTCUT.search(layer) else "trunk"
        kinds[role, tuple(sorted(leaves.items()))].append(layer)
    keys: dict[Key, str] = {}
    for kind, members in kinds.items():
        if len({_numbers(layer) for layer in members}) < len(members):
            return None
        for rank, layer in enumerate(sorted(members, key=_numbers)):
            keys.update({(*kind, rank, leaf): f"{layer}.{leaf}" for leaf in layers[layer]})
    return keys


def _blocks(layers: Mapping[str, Mapping[str, Shape]]) -> set[str]:
    """The groups of layers with more than one convolution, which are stages rather than the stem or the head."""
    num_convs: defaultdict[str, int] = defaultdict(int)
    for layer, leaves in layers.items():
        num_convs[_group(layer)] += len(leaves.get("weight", ())) == 4
    return {group for group, n in num_convs.items() if n > 1}


def _group(layer: str) -> str:
    tokens = layer.split(".")
    return ".".join(tokens[: 2 if tokens[0] in CONTAINERS else 1])


def _numbers(layer: str) -> tuple[int, ...]:
    """layer2.0.conv_b → (2, 0, 2): the numbers in a name, with single letters counted as numbers."""
    matches: Iterable[tuple[str, str]] = re.findall(r"(\d+)|(?<![a-z])([a-h])(?![a-z])", layer.lower())
    return tuple(int(digits[-18:]) if digits else ord(letter) - ord("a") + 1 for digits, letter in matches)

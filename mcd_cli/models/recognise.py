"""Recognises the architecture, from the zoo or from torchvision, that a set of named tensors belongs to."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mcd_cli.models import ARCHITECTURES, TORCHVISION, build, library_of
from mcd_cli.models.layouts import NO_WEIGHTS, Shape, canonical, unwrapped

Shapes = Mapping[str, Shape]
PLACEHOLDER = 7919  # a number of classes that does not occur as a width in any network
TABLES = re.compile(r"running_(mean|var)$|relative_position_index$|relative_coords_table$")  # buffers, not parameters
ALIKE_EVERYWHERE = re.compile(TORCHVISION + "(resnet|resnext|wide_resnet|shufflenet)")
DRAWS = (Tensor.normal_, Tensor.uniform_)


class Unallocated(TorchFunctionMode):
    """Modules built inside get no memory for their weights. (torch.device("meta") would also drop RegNet's tables.)

    Random initialisation is skipped: on the meta device, torch would import its compiler (2 s) for it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__ or func in DRAWS:
            return args[0] if args else kwargs["tensor"]
        if func is torch.empty:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


@dataclass(frozen=True)
class Network:
    """The shapes of a file's tensors by name. ordered: the names are in the order of the network's layers."""

    shapes: Shapes
    ordered: bool

    @property
    def has_order(self) -> bool:
        return self.ordered and list(self.shapes) != sorted(self.shapes)


@dataclass(frozen=True)
class Fit:
    """How a network fits an architecture.

    names: the architecture's name of each tensor → the file's name; by: what was matched: 0 equal names, 1 canonical
    names, 2 only the order.
    """

    arch: str
    num_classes: int
    names: Mapping[str, str]
    by: int


@cache
def skeleton(arch: str, num_classes: int = PLACEHOLDER) -> dict[str, Shape]:
    """The shapes of an architecture's weights by name, in the order of its layers."""
    with torch.random.fork_rng(devices=[]), Unallocated():
        state = build(arch, num_classes).state_dict()
    return {name: tuple(t.shape) for name, t in state.items() if not NO_WEIGHTS.search(name)}


def classes_of(arch: str, network: Network) -> int | None:
    """The number of classes for which all shapes agree, regardless of names; None if there is none."""
    expected = skeleton(arch)
    if len(expected) != len(network.shapes):
        return None
    body = Counter(shape for shape in expected.values() if PLACEHOLDER not in shape)
    rest = Counter(network.shapes.values())
    rest.subtract(body)
    head = sorted(shape for shape, n in rest.items() if n)
    if not head or not head[0] or not head[0][0] or any(n < 0 for n in rest.values()):
        return None
    expected_head = {shape for shape in expected.values() if PLACEHOLDER in shape}
    num_classes = head[0][0]
    with_classes = {tuple(num_classes if d == PLACEHOLDER else d for d in shape) for shape in expected_head}
    return num_classes if with_classes == set(head) else None


def fit(arch: str, network: Network) -> Fit | None:
    """Match the network to this architecture by equal names, else by canonical names, else by order and shapes."""
    num_classes = classes_of(arch, network)
    if num_classes is None:
        return None
    expected = skeleton(arch, num_classes)
    short = unwrapped({name: (name, shape) for name, shape in expected.items()}).get("", {})
    if {name: shape for name, (_, shape) in short.items()} == dict(network.shapes):
        return Fit(arch, num_classes, {full: name for name, (full, _) in short.items()}, by=0)
    theirs, ours = canonical(network.shapes), canonical(expected)
    if theirs is not None and ours is not None and theirs.keys() == ours.keys():
        return Fit(arch, num_classes, {ours[key]: theirs[key] for key in ours}, by=1)
    if network.has_order and _sequence(expected) == _sequence(network.shapes):
        return Fit(arch, num_classes, dict(zip(expected, network.shapes, strict=True)), by=2)
    return None


def _sequence(shapes: Shapes) -> list[tuple[str, Shape]]:
    return [(name.rpartition(".")[2], shape) for name, shape in shapes.items()]


def fits(network: Network) -> list[Fit]:
    """All architectures that match the network, by the best kind of match only. The zoo is tried before torchvision.

    Most of torchvision's families must match by name, because the same shapes elsewhere (such as TensorFlow's
    EfficientNets in timm) come with different padding or normalisation.
    """
    for archs in (ARCHITECTURES, _torchvision_of_this_size(network)):
        matches = [f for arch in archs if (f := fit(arch, network)) is not None]
        matches = [f for f in matches if f.by == 0 or library_of(f.arch) is None or ALIKE_EVERYWHERE.match(f.arch)]
        if matches:
            best = min(f.by for f in matches)
            return [f for f in matches if f.by == best]
    return []


def _torchvision_of_this_size(network: Network) -> Iterator[str]:
    """torchvision's names whose published parameter count, corrected for this file's head, matches the file.

    The published counts are for 1000 classes and, for networks with `@small`, for a stem that may be larger.
    """
    from torchvision.models import get_model_weights

    from mcd_cli.models import torchvision_zoo

    shapes = [s for name, s in network.shapes.items() if not TABLES.search(name)]
    count = sum(torch.Size(shape).numel() for shape in shapes)
    heads = {shape for shape in shapes if len(shape) in (2, 4)}
    per_class = [(torch.Size(head[1:]).numel() + bias, head[0]) for head in heads for bias in (0, 1)]
    counts = {count + weights * (1000 - num_classes) for weights, num_classes in per_class}
    stems = {0} | {shape[0] * 3 * (7 * 7 - 3 * 3) for shape in heads if shape[1:] == (3, 3, 3)}
    for name in torchvision_zoo.names():
        published = {weights.meta["num_params"] for weights in get_model_weights(name)}
        has_auxiliary_heads = name in torchvision_zoo.ARGUMENTS
        if has_auxiliary_heads or any(n - stem in counts for n in published for stem in stems):
            yield TORCHVISION + name
            if torchvision_zoo.adapts(name):
                yield TORCHVISION + name + torchvision_zoo.SMALL


def mismatch(arch: str, network: Network) -> str:
    """Describes the first tensor in which the network differs from the architecture."""
    num_classes = next((s[0] for s in reversed(list(network.shapes.values())) if len(s) == 2), PLACEHOLDER)
    expected, actual = skeleton(arch, num_classes), network.shapes
    if len(expected.keys() & actual.keys()) * 2 > len(expected):
        for name, shape in expected.items():
            if name not in actual:
                return f"{name} {list(shape)} is missing"
            if actual[name] != shape:
                return f"{name} is {list(actual[name])}, expected {list(shape)}"
        return f"it has the extra tensor {next(name for name in actual if name not in expected)}"
    for (name, shape), (file_name, file_shape) in zip(expected.items(), actual.items(), strict=False):
        if shape != file_shape:
            return f"{file_name} is {list(file_shape)}, but {name} is {list(shape)}"
    return f"it has {len(actual)} tensors, {arch} has {len(expected)}"


def describe(network: Network) -> str:
    """A short description of a network: number of tensors, first convolution, last linear layer."""
    convs = [s for s in network.shapes.values() if len(s) == 4 and s[1] == 3] or [
        s for s in network.shapes.values() if len(s) == 4
    ]
    linears = [s for s in network.shapes.values() if len(s) == 2]
    first = f"first convolution {list(convs[0])}" if convs else "no convolution"
    last = f"last linear layer {list(linears[-1])}" if linears else "no linear layer"
    return f"{len(network.shapes)} tensors, {first}, {last}"


def nearest(network: Network, archs: Iterable[str] = ARCHITECTURES, n: int = 2) -> list[str]:
    """The n architectures that share the most shapes with the network, if they share at least half of them."""
    shapes = Counter(network.shapes.values())
    scores: dict[str, float] = {}
    for arch in archs:
        expected = Counter(skeleton(arch).values())
        scores[arch] = (shapes & expected).total() / max(shapes.total(), expected.total())
    return [arch for arch in sorted(scores, key=lambda a: -scores[a])[:n] if scores[arch] >= 0.5]

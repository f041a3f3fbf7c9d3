"""What a network costs: multiply-adds (MACs), parameters, bytes.

The convention: one multiply-add is one MAC. Convolutions and matrix products are counted, for one image.
BatchNorm counts as parameters, not as MACs (it folds into the convolution before it); biases, pooling,
activations and other elementwise work are no MACs either. An operator that is neither counted nor known to be
one of these is named in `Cost.uncounted`, never taken as zero.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

with warnings.catch_warnings():
    # fvcore compiles losses that nobody here uses when it is imported; newer torch deprecates the compiler.
    warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is ")
    from fvcore.nn import FlopCountAnalysis

# Operators by fvcore's names, without "aten::". Its "flops" are multiply-adds.
_COUNTED = {"conv", "linear", "addmm", "mm", "bmm", "matmul", "einsum"}
_NORMALISATION = "batch_norm instance_norm group_norm layer_norm rms_norm"
_POOLING = """max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool2d mean sum amax argmax max min var std"""
_ELEMENTWISE = """add sub rsub mul div neg abs exp log sqrt rsqrt pow clamp_min clamp_max maximum minimum
    where relu6 hardtanh hardsigmoid hardswish sigmoid tanh silu gelu elu selu celu leaky_relu prelu softplus
    mish softmax log_softmax"""
_MOVING = """pad repeat repeat_interleave clone pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle flip upsample_nearest2d dropout feature_dropout alias unflatten expand_as view_as item"""
_FREE = set(f"{_NORMALISATION} {_POOLING} {_ELEMENTWISE} {_MOVING}".split())


@dataclass(frozen=True)
class Layer:
    """One module's own work and parameters, its children's left out."""

    name: str
    macs: int
    params: int


@dataclass(frozen=True)
class Cost:
    """macs: multiply-adds for one image; params: numbers that training sets; bytes: of the state dict."""

    macs: int
    params: int
    bytes: int
    uncounted: tuple[str, ...]  # operators that may multiply and add, and that nobody counted
    by_layer: tuple[Layer, ...]  # in the model's order; sums to macs and params


def profile(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """The cost of a model for one image of `input_shape` (3, H, W); the model is left as it was.

    Counted by fvcore on a traced forward pass in eval mode. Raises what the model raises where it cannot take
    the shape.
    """
    some = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, dtype=some.dtype, device=some.device)
    modes = [(module, module.training) for module in model.modules()]
    analysis = FlopCountAnalysis(model.eval(), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with torch.no_grad():
            per_module = analysis.by_module_and_operator()
            seen = set(per_module[""]) | {op.removeprefix("aten::") for op in analysis.unsupported_ops()}
    finally:
        for module, training in modes:
            module.training = training
    by_layer = _by_layer(model, per_module)
    return Cost(
        macs=sum(layer.macs for layer in by_layer),
        params=sum(layer.params for layer in by_layer),
        bytes=_stored_bytes(model),
        uncounted=tuple(sorted(op for op in seen if op not in _COUNTED and op.removesuffix("_") not in _FREE)),
        by_layer=by_layer,
    )


def _by_layer(model: nn.Module, per_module: dict[str, Counter[str]]) -> tuple[Layer, ...]:
    """fvcore counts a module with all that is below it; here each keeps its own."""
    macs = {name: sum(int(ops[op]) for op in ops if op in _COUNTED) for name, ops in per_module.items()}
    own = dict(macs)
    for name in filter(None, macs):
        own[name.rpartition(".")[0]] -= macs[name]
    params: Counter[str] = Counter()
    for name, parameter in model.named_parameters():  # a shared one comes once
        params[name.rpartition(".")[0]] += parameter.numel()
    return tuple(Layer(name, own[name], params[name]) for name in own if own[name] or params[name])


def _stored_bytes(model: nn.Module) -> int:
    """Parameters and persistent buffers, shared ones once; floating-point numbers as float32, 4 bytes."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors.values())

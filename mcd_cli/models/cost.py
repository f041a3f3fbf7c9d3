"""Counts what a network costs: multiply-adds (MACs), parameters and bytes.

Convention: one multiply-add is one MAC, and costs are per image. Convolutions and matrix products are counted.
BatchNorm counts towards the parameters but not the MACs (it folds into the convolution before it); biases, pooling,
activations and other elementwise operations have no MACs. An operator that is neither counted nor known to be free
is listed in `Cost.uncounted` instead of being counted as zero.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

with warnings.catch_warnings():
    # On import, fvcore compiles losses that are not used here, with a compiler that newer torch deprecates.
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
    """The MACs and parameters of one module without its children."""

    name: str
    macs: int
    params: int


@dataclass(frozen=True)
class Cost:
    """A network's cost. macs: multiply-adds per image; params: trainable numbers; bytes: size of the state dict."""

    macs: int
    params: int
    bytes: int
    uncounted: tuple[str, ...]  # operators that may have MACs but could not be counted
    by_layer: tuple[Layer, ...]  # in the model's order; sums to macs and params


def profile(model: nn.Module, input_shape: Sequence[int]) -> Cost:
    """The cost of a model for one image of `input_shape` (3, H, W); the model is not changed.

    fvcore counts the operators of a traced forward pass in eval mode. If the model cannot take the shape, its
    exception is passed on.
    """
    parameter = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *input_shape, dtype=parameter.dtype, device=parameter.device)
    modes = [(module, module.training) for module in model.modules()]
    analysis = FlopCountAnalysis(model.eval(), image)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    try:
        with torch.no_grad():
            per_module = analysis.by_module_and_operator()
            operators = set(per_module[""]) | {op.removeprefix("aten::") for op in analysis.unsupported_ops()}
    finally:
        for module, training in modes:
            module.training = training
    by_layer = _by_layer(model, per_module)
    return Cost(
        macs=sum(layer.macs for layer in by_layer),
        params=sum(layer.params for layer in by_layer),
        bytes=_stored_bytes(model),
        uncounted=tuple(sorted(op for op in operators if op not in _COUNTED and op.removesuffix("_") not in _FREE)),
        by_layer=by_layer,
    )


def _by_layer(model: nn.Module, per_module: dict[str, Counter[str]]) -> tuple[Layer, ...]:
    """Costs per module without its children; fvcore's counts include them."""
    macs = {name: sum(int(ops[op]) for op in ops if op in _COUNTED) for name, ops in per_module.items()}
    own_macs = dict(macs)
    for name in filter(None, macs):
        own_macs[name.rpartition(".")[0]] -= macs[name]
    params: Counter[str] = Counter()
    for name, parameter in model.named_parameters():  # yields a shared parameter once
        params[name.rpartition(".")[0]] += parameter.numel()
    return tuple(Layer(name, own_macs[name], params[name]) for name in own_macs if own_macs[name] or params[name])


def _stored_bytes(model: nn.Module) -> int:
    """Bytes of parameters and persistent buffers, with shared tensors counted once and floats stored as float32."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(t.numel() * (4 if t.is_floating_point() else t.element_size()) for t in tensors.values())

"""Eq. 9: the exact gradient of L_val(θ^{t+1}) with respect to the loss weights of the step θ^t → θ^{t+1}.

PyTorch's SGD is d = μ b + (1 − δ)(g + ω θ), θ' = θ − η d, with g = (1/n) Σ_ijc w_ijc ∇ℓ_ijc(θ). Momentum and
decay do not depend on w, so ∂θ'_j/∂w_ijc = −(c_j/n) ∇ℓ_ijc(θ_j), and with v_j = ∇_θj L_val(θ'_j)

    ∂L_val/∂w_ijc = −(c_j/n) ⟨v_j, ∇ℓ_ijc(θ_j)⟩

for all i and c at once: one forward-mode derivative of the logits along v. No double backward, no copy of a
student, no virtual step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call

from mcd_cli.losses.ce import cross_entropy
from mcd_cli.ops.batch_norm import FORWARD_MODE
from mcd_cli.ops.overrides import Overrides

Parameters = Mapping[str, Tensor]


def step_size(group: Mapping[str, Any], has_buffer: bool) -> float | Tensor:
    """c of the step that SGD is about to take with this parameter group: ∂θ'/∂g = −c.

    c = η(1 − δ), but η while momentum has no buffer yet (PyTorch's first step skips dampening). Nesterov's step
    adds the look-ahead: η(1 + μ(1 − δ)).
    """
    eta: float | Tensor = group["lr"]  # a tensor if it lives on the device
    mu, delta = float(group["momentum"]), float(group["dampening"])
    if mu == 0:
        return eta
    into_buffer = 1 - delta if has_buffer else 1.0
    return eta * (1 + mu * into_buffer) if group["nesterov"] else eta * into_buffer


def without_side_effects(model: nn.Module, parameters: Parameters, *inputs: Tensor) -> Tensor:
    """model(*inputs) with these parameters; train-mode BatchNorm updates clones of its buffers, not the buffers."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    output: Tensor = functional_call(model, {**parameters, **buffers}, inputs)
    return output


def validation_gradient(students: nn.Module, x: Tensor, y: Tensor, size: int | None = None) -> dict[str, Tensor]:
    """v = ∇_θ L_val(θ') with L_val = Σ_j mean_i ce (Eq. 6), train-mode BatchNorm, running statistics untouched.

    students: images [m, 3, H, W] → logits [m, k, C]; x, y: a mini-batch of val. Returns one tensor per parameter.
    size: number of images in the whole mini-batch if x, y are one shard of it; v is then the sum over shards.
    """
    parameters = dict(students.named_parameters())
    loss = cross_entropy(without_side_effects(students, parameters, x), y).sum() / (size or len(x))
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def directional_losses(
    students: nn.Module,
    theta: Parameters,
    v: Parameters,
    x: Tensor,
    losses: Callable[[Tensor], Tensor],
) -> Tensor:
    """⟨v_j, ∇ℓ_ijc(θ_j)⟩ for every instance i, student j and loss c, in one forward-mode pass.

    theta: the parameters before the real step; losses: logits [n, k, C] → ℓ [n, k, c], with constant targets.
    Returns [n, k, c]. (z_ij depends only on θ_j, so one direction serves all students: ż_ij = ⟨v_j, ∇z_ij⟩.)
    """
    with warnings.catch_warnings(), torch.no_grad(), forward_ad.dual_level(), Overrides(FORWARD_MODE):
        # torch's own forward-mode rules still use torch.jit.script, which newer versions deprecate
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is ")
        parameters = {name: forward_ad.make_dual(theta[name], v[name]) for name in theta}
        z, z_dot = forward_ad.unpack_dual(without_side_effects(students, parameters, x))
    # ℓ_ijc depends only on z_ij. (Forward mode through the losses would import torch's compiler, which takes 2 s.)
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        each = losses(z).sum(dim=(0, 1))
        slopes = [torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in each]
    return torch.stack([(slope * z_dot).sum(dim=-1) for slope in slopes], dim=-1)


def weight_gradient(directional: Tensor, c: Sequence[float | Tensor] | float, n: int | None = None) -> Tensor:
    """G_ijc = ∂L_val/∂w_ijc = −(c_j/n) ⟨v_j, ∇ℓ_ijc⟩; pass c = 1 to get G/c, without the learning rate.

    directional: [n, k, c]; c: one step size per student [k], or one for all; n: number of images in the whole batch
    if this is one shard of it. Returns [n, k, c].
    """
    unit = directional.new_ones(())  # multiplied, not converted: a copy from the host would wait for the device
    size = torch.stack([unit * c_j for c_j in ([c] if isinstance(c, float) else c)])
    return -size.reshape(1, -1, 1) / (n or len(directional)) * directional

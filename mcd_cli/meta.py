"""Eq. 9: the exact gradient of L_val(θ^{t+1}) with respect to the loss weights of the step θ^t → θ^{t+1}.

PyTorch's SGD is d = μ b + (1 − δ)(g + ω θ), θ' = θ − η d, with g = (1/n) Σ_ijc w_ijc ∇ℓ_ijc(θ). Momentum and
decay do not depend on w, so ∂θ'_j/∂w_ijc = −(c_j/n) ∇ℓ_ijc(θ_j), and with v_j = ∇_θj L_val(θ'_j)

    ∂L_val/∂w_ijc = −(c_j/n) ⟨v_j, ∇ℓ_ijc(θ_j)⟩

for all i and c at once: one forward-mode derivative of the loss tensor along v. No double backward, no copy of a
student, no virtual step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from mcd_cli.losses import cross_entropy

Parameters = Mapping[str, Tensor]


def step_size(group: Mapping[str, Any], has_buffer: bool) -> float:
    """c of the step that SGD is about to take with this parameter group: ∂θ'/∂g = −c.

    c = η(1 − δ); η where momentum has no buffer yet (PyTorch's first step skips dampening); Nesterov's step
    looks ahead once more: η(1 + μ(1 − δ)).
    """
    eta, mu, delta = float(group["lr"]), float(group["momentum"]), float(group["dampening"])
    if mu == 0:
        return eta
    into_buffer = 1 - delta if has_buffer else 1.0
    return eta * (1 + mu * into_buffer) if group["nesterov"] else eta * into_buffer


def without_side_effects(model: nn.Module, parameters: Parameters, x: Tensor) -> Tensor:
    """model(x) under the given parameters; train-mode BatchNorm writes to clones, not to its buffers."""
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    output: Tensor = functional_call(model, {**parameters, **buffers}, (x,))
    return output


def validation_gradient(students: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """v = ∇_θ L_val(θ') with L_val = Σ_j mean_i ce (Eq. 6), train-mode BatchNorm, running statistics untouched.

    students: images [m, 3, H, W] → logits [m, k, C]; x, y: a mini-batch of V. Returns one tensor per parameter.
    """
    parameters = dict(students.named_parameters())
    loss = cross_entropy(without_side_effects(students, parameters, x), y).mean(dim=0).sum()
    return dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))


def directional_losses(
    students: nn.Module,
    theta: Parameters,
    v: Parameters,
    x: Tensor,
    losses: Callable[[Tensor], Tensor],
) -> Tensor:
    """⟨v_j, ∇ℓ_ijc(θ_j)⟩ for every instance i, student j and loss c, in one forward-mode pass.

    theta: the parameters before the real step; losses: logits [n, k, C] → ℓ [n, k, c], with its targets held
    constant. Returns [n, k, c]. (ℓ_ijc depends on θ_j alone, so one direction serves all students.)
    """

    def loss_tensor(parameters: Parameters) -> Tensor:
        return losses(without_side_effects(students, parameters, x))

    with warnings.catch_warnings(), _QuickBatchNorm():
        # torch's own forward-mode rules still use the compiler that newer torch deprecates
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is ")
        tangent: Tensor = torch.func.jvp(loss_tensor, (dict(theta),), (dict(v),))[1]
    return tangent.detach()


def weight_gradient(directional: Tensor, c: Sequence[float] | float) -> Tensor:
    """G_ijc = ∂L_val/∂w_ijc = −(c_j/n) ⟨v_j, ∇ℓ_ijc⟩; pass c = 1 for G/c, the learning rate divided out.

    directional: [n, k, c]; c: one step size per student [k], or one for all. Returns [n, k, c].
    """
    n = directional.shape[0]
    size = torch.as_tensor(c, dtype=directional.dtype, device=directional.device)
    return -size.reshape(1, -1, 1) / n * directional


class _QuickBatchNorm(TorchFunctionMode):
    """Within: train-mode BatchNorm takes its forward-mode derivative from `_BatchNorm`; its buffers stay as they are.

    torch spells that derivative out in a dozen passes over the feature map, which is half of a JVP's time.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        y: Tensor = _BatchNorm.apply(x, weight, bias, eps)[0]  # type: ignore[no-untyped-call]
        return y


class _BatchNorm(torch.autograd.Function):
    """y = γ x̂ + β over a batch, with ẏ = J ẋ + γ̇ x̂ + β̇ in two native passes.

    Per channel J = γ σ⁻¹ (I − 11ᵀ/m − x̂ x̂ᵀ/m) is symmetric, so the native backward pass is J ẋ, too.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(x, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        x, weight, _, ctx.eps = inputs
        _, mean, inverse_std = output
        ctx.mark_non_differentiable(mean, inverse_std)
        ctx.set_materialize_grads(False)
        ctx.save_for_forward(x, weight, mean, inverse_std)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor | None, None, None]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        x_dot, weight_dot, bias_dot, _ = tangents
        y_dot = None
        if weight_dot is not None or bias_dot is not None:
            variance = inverse_std**-2 - ctx.eps
            y_dot = F.batch_norm(x, mean, variance, weight_dot, bias_dot, False, 0.0, ctx.eps)
        if x_dot is not None:
            along_x = torch.ops.aten.native_batch_norm_backward(
                x_dot, x, weight, None, None, mean, inverse_std, True, ctx.eps, [True, False, False]
            )[0]
            y_dot = along_x if y_dot is None else y_dot.add_(along_x)
        return y_dot, None, None

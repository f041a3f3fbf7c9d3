"""The meta-gradient against double backward, and against a case calculated by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mcd_cli.ops import meta_gradient
from mcd_cli.ops.losses import instance_losses, pooled

C, N, M = 5, 8, 6


class TinyStudents(nn.Module):
    """k small networks with train-mode BatchNorm, float64; images [n, 3, 4, 4] → [n, k, C]."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(3, 4 + j, 3, padding=1, bias=False),
                nn.BatchNorm2d(4 + j),
                nn.Tanh(),
                nn.Conv2d(4 + j, 4, 3),
                nn.BatchNorm2d(4),
                nn.Flatten(),
                nn.Linear(16, C),
            )
            for j in range(k)
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([network(x) for network in self.networks], dim=1)


def differentiable_sgd(
    students: nn.Module,
    optimizer: torch.optim.SGD,
    loss_of: Mapping[str, Tensor],
    theta: dict[str, Tensor],
) -> dict[str, Tensor]:
    """PyTorch's documented SGD update, written out with a graph: the independent route."""
    names = {id(p): name for name, p in students.named_parameters()}
    new = {}
    for group in optimizer.param_groups:
        mu, delta, eta = group["momentum"], group["dampening"], group["lr"]
        for p in group["params"]:
            name = names[id(p)]
            g = loss_of[name] + group["weight_decay"] * theta[name]
            buffer = optimizer.state.get(p, {}).get("momentum_buffer")
            if mu:
                b = g if buffer is None else mu * buffer.detach().clone() + (1 - delta) * g
                g = g + mu * b if group["nesterov"] else b
            new[name] = theta[name] - eta * g
    return new


@pytest.mark.parametrize("steps_before", [0, 2])
@pytest.mark.parametrize("with_pooled", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "sgd",
    [
        {"momentum": 0.0, "weight_decay": 0.0},
        {"momentum": 0.95, "weight_decay": 1e-2},
        {"momentum": 0.9, "weight_decay": 1e-2, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 1e-2, "dampening": 0.3},
    ],
    ids=["plain", "momentum", "nesterov", "dampening"],
)
def test_equals_double_backward(sgd: dict, k: int, with_pooled: bool, steps_before: int) -> None:
    torch.manual_seed(k)
    students = TinyStudents(k).double().train()
    optimizer = torch.optim.SGD(
        [{"params": list(network.parameters()), "lr": 0.1 / (1 + j)} for j, network in enumerate(students.networks)],
        lr=0.1,
        **sgd,
    )

    def draw() -> tuple[Tensor, Tensor, Tensor, Tensor]:
        num_losses = 3 if with_pooled else 2
        x, y = torch.randn(N, 3, 4, 4).double(), torch.randint(C, (N,))
        return x, y, 3 * torch.randn(N, C).double(), torch.rand(N, k, num_losses).double()

    def losses(z: Tensor, y: Tensor, targets: Tensor) -> Tensor:
        return instance_losses(z, y, targets, tau=2.0)

    def targets_of(z: Tensor, y: Tensor, z_teacher: Tensor) -> Tensor:
        targets = [z_teacher, pooled(z, y)] if with_pooled else [z_teacher]
        return torch.stack(targets, dim=1)[:, None].detach()

    for _ in range(steps_before):
        x, y, z_teacher, w = draw()
        z = students(x)
        optimizer.zero_grad()
        (w * losses(z, y, targets_of(z, y, z_teacher))).sum(dim=(1, 2)).mean().backward()
        optimizer.step()

    x, y, z_teacher, w = draw()
    x_val, y_val = torch.randn(M, 3, 4, 4).double(), torch.randint(C, (M,))
    theta = {name: p.detach().clone() for name, p in students.named_parameters()}

    # independent route: a graph through the update
    leaf = {name: p.clone().requires_grad_() for name, p in theta.items()}
    w_leaf = w.clone().requires_grad_()
    copied = copy.deepcopy(students)
    z = functional_call(copied, leaf, (x,))
    targets = targets_of(z, y, z_teacher)
    loss = (w_leaf * losses(z, y, targets)).sum() / N
    gradients = dict(zip(leaf, torch.autograd.grad(loss, list(leaf.values()), create_graph=True), strict=True))
    theta_new = differentiable_sgd(students, optimizer, gradients, leaf)
    z_val = functional_call(copied, theta_new, (x_val,))
    l_val = sum(nn.functional.cross_entropy(z_val[:, j], y_val) for j in range(k))
    (expected,) = torch.autograd.grad(l_val, w_leaf)

    # ours: the real step, then one gradient of L_val and one forward-mode pass
    c = [
        meta_gradient.step_size(group, optimizer.state.get(group["params"][0], {}).get("momentum_buffer") is not None)
        for group in optimizer.param_groups
    ]
    optimizer.zero_grad()
    (w * losses(students(x), y, targets)).sum(dim=(1, 2)).mean().backward()
    optimizer.step()
    buffers_before = {name: b.clone() for name, b in students.named_buffers()}
    v = meta_gradient.validation_gradient(students, x_val, y_val)
    directional = meta_gradient.directional_losses(students, theta, v, x, lambda z: losses(z, y, targets))
    ours = meta_gradient.weight_gradient(directional, c)

    for name, p in students.named_parameters():
        torch.testing.assert_close(p.detach(), theta_new[name].detach(), rtol=1e-12, atol=1e-14)
    assert (ours - expected).norm() <= 1e-10 * expected.norm()
    assert expected.norm() > 1e-6
    for name, b in students.named_buffers():
        assert torch.equal(b, buffers_before[name]), f"{name} was moved by the meta step"


def test_two_parameters_by_hand() -> None:
    """One linear student, two classes, one image: every number worked out on paper.

    z = (a x, b x), a = b = 0, x = 2, label 0: p = (1/2, 1/2), ∇ce = x (p − e_0) = (−1, 1). A step of weight w and
    rate η: a' = η w, b' = −η w. Validation image x = 1, label 0: L = log(1 + exp(b' − a')) = log(1 + exp(−2 η w)).
    dL/dw = −2 η / (1 + exp(2 η w)).
    """

    class Line(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ab = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            return (x * self.ab)[:, None]

    student, eta, w = Line(), 0.3, 0.7
    x, x_val = torch.tensor([[2.0]]).double(), torch.tensor([[1.0]]).double()
    y = torch.tensor([0])
    theta = {"ab": student.ab.detach().clone()}
    optimizer = torch.optim.SGD(student.parameters(), lr=eta)
    (w * instance_losses(student(x), y, None, tau=2.0)).sum().backward()
    optimizer.step()
    assert student.ab.tolist() == pytest.approx([eta * w, -eta * w])
    v = meta_gradient.validation_gradient(student, x_val, y)
    d = meta_gradient.directional_losses(student, theta, v, x, lambda z: instance_losses(z, y, None, tau=2.0))
    expected = -2 * eta / (1 + torch.tensor(2 * eta * w).exp().item())
    assert meta_gradient.weight_gradient(d, eta).item() == pytest.approx(expected, rel=1e-6)
    assert meta_gradient.weight_gradient(d, 1.0).item() == pytest.approx(expected / eta, rel=1e-6)


@pytest.mark.parametrize(
    ("group", "has_buffer", "c"),
    [
        ({"lr": 0.1, "momentum": 0.0, "dampening": 0.0, "nesterov": False}, False, 0.1),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": False}, False, 0.1),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.5, "nesterov": False}, True, 0.05),
        ({"lr": 0.1, "momentum": 0.9, "dampening": 0.0, "nesterov": True}, True, 0.19),
    ],
)
def test_step_size(group: dict, has_buffer: bool, c: float) -> None:
    assert meta_gradient.step_size(group, has_buffer) == pytest.approx(c)


def test_dropout_on_channels_last_maps() -> None:
    """The forward-mode pass draws the masks of the real one, whatever their layout."""
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(16, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    ).double()
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.rand(6, 3, 8, 8, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    theta = dict(model.named_parameters())
    v = {name: torch.randn_like(p) for name, p in theta.items()}
    torch.manual_seed(5)
    squares = model(x).square().sum(dim=1)
    expected = [
        sum(
            (g * v[n]).sum()
            for n, g in zip(theta, torch.autograd.grad(s, list(theta.values()), retain_graph=True), strict=True)
        )
        for s in squares
    ]
    torch.manual_seed(5)
    found = meta_gradient.directional_losses(model, theta, v, x, lambda z: z.square().sum(dim=1)[:, None, None])
    torch.testing.assert_close(found[:, 0], torch.stack(expected))

"""What each method weighs, follows and runs; MC-Distil's start against KD."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mcd_cli.losses import instance_losses
from mcd_cli.methods import METHODS
from mcd_cli.methods.base import TEACHER, Method, Step
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.recipe import DistillSection
from mcd_cli.seeds import generator

N, C, TAU = 6, 4, 2.0
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def step_of(k: int, method: Method) -> tuple[Step, Tensor]:
    draw = torch.Generator().manual_seed(k)
    z, z_teacher = (2 * torch.randn(*shape, C, generator=draw, dtype=torch.float64) for shape in ((N, k), (N,)))
    (stage,) = method.stages([f"s{j}" for j in range(k)])
    teachers = {TEACHER: z_teacher} if TEACHER in stage.teachers else {}
    return Step(torch.arange(N), Y, z, teachers, {}, 0, lambda purpose: generator(purpose)), z


def total(name: str, k: int = 3, lam: float = 0.5, cnet: bool = False) -> float:
    """The loss that the engine would minimise: Σ_j mean_i Σ_c w_ijc ℓ_ijc."""
    method = METHODS.load(name)(DistillSection(lambda_=lam))
    step, z = step_of(k, method)
    losses = instance_losses(z, Y, method.guides(step), TAU)
    if cnet:
        (stage,) = method.stages([f"s{j}" for j in range(k)])
        num_losses = len(method.symbols(stage))
        g = Coordinator("resnet10-xxxs", k, num_losses, mean=(0.5,) * 3, std=(0.5,) * 3)
        w = g.weigh(g(torch.rand(N, 3, 16, 16))).double().detach()
        assert w.shape == losses.shape
    else:
        w = method.weights(step).expand_as(losses)
    return (w * losses).sum(dim=(1, 2)).mean().item()


def by_hand(k: int = 3) -> tuple[float, float, float]:
    """Σ_j mean of ce, of kd to the teacher, and of kd to the pool, by torch's own losses."""
    step, z = step_of(k, METHODS.load("kd")(DistillSection()))
    z_pooled = z.min(dim=1).values
    z_pooled[torch.arange(N), Y] = z.max(dim=1).values[torch.arange(N), Y]

    def kd(j: int, target: Tensor) -> Tensor:
        log_p, log_q = (F.log_softmax(t / TAU, -1) for t in (target, z[:, j]))
        return TAU**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    ce = sum(F.cross_entropy(z[:, j], Y).item() for j in range(k))
    return ce, *(sum(kd(j, t).item() for j in range(k)) for t in (step.teachers[TEACHER], z_pooled))  # type: ignore[return-value]


def test_ce_is_the_labels_alone() -> None:
    assert total("ce") == pytest.approx(by_hand()[0], rel=1e-10)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_kd_is_equation_1(lam: float) -> None:
    ce, kd, _ = by_hand()
    assert total("kd", lam=lam) == pytest.approx((1 - lam) * ce + lam * kd, rel=1e-10)


def test_an_untrained_c_net_is_kd_plus_half_the_pool() -> None:
    _, _, pool = by_hand()
    assert pool > 0.1
    assert total("mc-distil-nops", cnet=True) == pytest.approx(total("kd"), rel=1e-10)
    assert total("mc-distil", cnet=True) == pytest.approx(total("kd") + 0.5 * pool, rel=1e-10)


def test_one_student_has_no_pool() -> None:
    method = METHODS.load("mc-distil")(DistillSection())
    step, _ = step_of(1, method)
    (stage,) = method.stages(["alone"])
    assert method.symbols(stage) == ("alpha", "beta")
    assert method.guides(step).shape == (N, 1, 1, C)
    assert total("mc-distil", k=1, cnet=True) == pytest.approx(total("kd", k=1), rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_symbols_and_guides_fit_each_other(name: str) -> None:
    """Every stage has as many guides as symbols besides the label's, and trains every student once."""
    method = METHODS.load(name)(DistillSection())
    students = ["big", "middle", "small"]
    stages = method.stages(students)
    assert sorted(student for stage in stages for student in stage.students) == sorted(students)
    for stage in stages:
        seen = {teacher: torch.randn(N, C) for teacher in stage.teachers}
        z = torch.randn(N, len(stage.students), C)
        guides = method.guides(Step(torch.arange(N), Y, z, seen, {}, 0, lambda purpose: generator(purpose)))
        assert len(method.symbols(stage)) == 1 + (0 if guides is None else guides.shape[2])


@pytest.mark.parametrize(("name", "teachers"), [("ce", ()), ("kd", (TEACHER,)), ("mc-distil", (TEACHER,))])
def test_joint_methods_have_one_stage(name: str, teachers: tuple[str, ...]) -> None:
    (stage,) = METHODS.load(name)(DistillSection()).stages(["a", "b"])
    assert (stage.students, stage.teachers) == (("a", "b"), teachers)
    assert METHODS.load(name)(DistillSection()).learned == (name == "mc-distil")

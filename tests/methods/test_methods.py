"""Each method's loss weights, targets and stages; MC-Distil's start against KD."""

from __future__ import annotations

import tomllib
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mcd_cli.comparison import paper
from mcd_cli.errors import UserError
from mcd_cli.losses import LOSSES
from mcd_cli.losses.bank import instance_losses, label_and
from mcd_cli.methods import METHODS, papers_methods
from mcd_cli.methods.base import TEACHER, BatchContext, Method, PreparationData, Stage
from mcd_cli.methods.settings import DistillSection
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.recipe.loading import parse_recipe
from mcd_cli.seeds import generator

N, C, TAU = 6, 4, 2.0
Y = torch.tensor([0, 1, 2, 3, 0, 1])


def batch_of(k: int, method: Method) -> tuple[BatchContext, Tensor]:
    draw = torch.Generator().manual_seed(k)
    z, z_teacher = (2 * torch.randn(*shape, C, generator=draw, dtype=torch.float64) for shape in ((N, k), (N,)))
    (stage,) = method.stages([f"s{j}" for j in range(k)])
    teachers = {TEACHER: z_teacher} if TEACHER in stage.teachers else {}
    return BatchContext(torch.arange(N), Y, z, teachers, {}, lambda: 0, lambda purpose: generator(purpose)), z


def total(name: str, k: int = 3, lam: float = 0.5, cnet: bool = False, **options: Any) -> float:
    """The loss that the engine would minimise: Σ_j mean_i Σ_c w_ijc ℓ_ijc."""
    method = METHODS.load(name)(DistillSection(lambda_=lam, **options))
    batch, z = batch_of(k, method)
    (stage,) = method.stages([f"s{j}" for j in range(k)])
    losses = instance_losses(z, Y, method.targets(batch), method.bank(stage))
    if cnet:
        num_losses = len(method.loss_names(stage))
        g = Coordinator("resnet10-xxxs", k, num_losses, mean=(0.5,) * 3, std=(0.5,) * 3)
        w = g.weigh(g(torch.rand(N, 3, 16, 16))).double().detach()
        assert w.shape == losses.shape
    else:
        w = method.weights(batch).expand_as(losses)
    return (w * losses).sum(dim=(1, 2)).mean().item()


def by_hand(k: int = 3) -> tuple[float, float, float]:
    """Σ_j mean of ce, of kd to the teacher, and of kd to the pool, by torch's own losses."""
    batch, z = batch_of(k, METHODS.load("kd")(DistillSection()))
    z_pooled = z.min(dim=1).values
    z_pooled[torch.arange(N), Y] = z.max(dim=1).values[torch.arange(N), Y]

    def kd(j: int, target: Tensor) -> Tensor:
        log_p, log_q = (F.log_softmax(t / TAU, -1) for t in (target, z[:, j]))
        return TAU**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    ce = sum(F.cross_entropy(z[:, j], Y).item() for j in range(k))
    return ce, *(sum(kd(j, t).item() for j in range(k)) for t in (batch.teachers[TEACHER], z_pooled))  # type: ignore[return-value]


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
    batch, _ = batch_of(1, method)
    (stage,) = method.stages(["alone"])
    assert method.loss_names(stage) == ("alpha", "beta")
    assert method.targets(batch).shape == (N, 1, 1, C)
    assert total("mc-distil", k=1, cnet=True) == pytest.approx(total("kd", k=1), rel=1e-10)


@pytest.mark.parametrize("name", METHODS)
def test_symbols_and_guides_fit_each_other(name: str) -> None:
    """Every stage has a name for each loss, as many targets as losses that follow one, and each student once."""
    method = METHODS.load(name)(DistillSection())
    students = ["big", "middle", "small"]
    stages = method.stages(students)
    assert sorted(student for stage in stages for student in stage.students) == sorted(students)
    for stage in stages:
        seen = {teacher: torch.randn(N, C) for teacher in stage.teachers}
        z = torch.randn(N, len(stage.students), C)
        tables = method.prepare(PreparationData(torch.arange(N), Y, N, lambda z=z: z))  # type: ignore[misc]
        targets = method.targets(
            BatchContext(torch.arange(N), Y, z, seen, tables, lambda: 0, lambda purpose: generator(purpose))
        )
        names, bank = method.loss_names(stage), method.bank(stage)
        assert len(set(names)) == len(names) == len(bank)
        assert len([term for term in bank if term.follows]) == (0 if targets is None else targets.shape[2])
        assert instance_losses(z, Y, targets, bank).shape == (N, len(stage.students), len(bank))


@pytest.mark.parametrize(("name", "teachers"), [("ce", ()), ("kd", (TEACHER,)), ("mc-distil", (TEACHER,))])
def test_joint_methods_have_one_stage(name: str, teachers: tuple[str, ...]) -> None:
    (stage,) = METHODS.load(name)(DistillSection()).stages(["a", "b"])
    assert (stage.students, stage.teachers) == (("a", "b"), teachers)


def test_kd_at_a_larger_total_weight() -> None:
    assert total("kd", lam=0.3, total=3.0) == pytest.approx(3 * total("kd", lam=0.3), rel=1e-10)


def test_constant_weights_with_the_pool() -> None:
    ce, kd, pool = by_hand()
    assert total("constant") == pytest.approx(0.5 * (ce + kd + pool), rel=1e-10)
    assert total("constant", constants=(1.0, 0.25, 2.0)) == pytest.approx(ce + 0.25 * kd + 2 * pool, rel=1e-10)


PAPERS = {
    "dkd": [("ce", 1, 1.0, 0.0), ("tckd", 1, 4.0, 1 / 12), ("nckd", 8, 4.0, 1 / 12)],
    "lskd": [("ce", 0.1, 1.0, 0.0), ("lskd", 9, 2.0, 0.0)],
    "dkd-lskd": [("ce", 1, 1.0, 0.0), ("lskd-tckd", 9, 2.0, 1 / 12), ("lskd-nckd", 72, 2.0, 1 / 12)],
    "nkd": [("ce", 1, 1.0, 0.0), ("nkd-target", 1, 1.0, 0.0), ("nkd-others", 1.5, 1.0, 0.0)],
    "wttm": [("ce", 1, 1.0, 0.0), ("wttm", 4, 5.0, 0.0)],
    "dist": [("ce", 1, 1.0, 0.0), ("dist-inter", 2, 4.0, 0.0), ("dist-intra", 2, 4.0, 0.0)],
    "rld": [("ce", 1, 1.0, 0.0), ("rld-scd", 1, 1.0, 1 / 12), ("rld-mcd", 8, 4.0, 1 / 12)],
    "wsld": [("ce", 1, 1.0, 0.0), ("wsld", 2.5, 2.0, 0.0)],
}


@pytest.mark.parametrize("name", PAPERS)
def test_a_papers_bank(name: str) -> None:
    """(loss, weight, τ, ramp) from the papers and their code, the teacher for all; `total` multiplies the weights."""
    method = METHODS.load(name)(DistillSection(total=2.0))
    (stage,) = method.stages(["a", "b"])
    assert [(term.loss, term.weight, term.tau, term.ramp) for term in method.bank(stage)] == PAPERS[name]
    assert {term.follows for term in method.bank(stage)} == {"", TEACHER}
    batch, _ = batch_of(2, method)
    torch.testing.assert_close(method.weights(batch), 2 * torch.tensor([row[1] for row in PAPERS[name]]).double())
    assert total(name, total=3.0) == pytest.approx(3 * total(name), rel=1e-10)


def test_dkd_with_both_parts_as_in_kd_is_kd() -> None:
    """tckd + (1 − b_T) nckd, here with a teacher that gives each label half: ce + kd at τ = 4."""
    method = METHODS.load("bank")(
        DistillSection(losses=["ce", {"loss": "tckd", "ramp": 0.0}, {"loss": "nckd", "weight": 0.5, "ramp": 0.0}])  # type: ignore[list-item]
    )
    batch, z = batch_of(3, method)
    t = batch.teachers[TEACHER]
    rest = (t / 4).exp().sum(-1) - (t / 4).exp()[torch.arange(N), Y]
    t[torch.arange(N), Y] = 4 * rest.log()
    (stage,) = method.stages(["a", "b", "c"])
    losses = instance_losses(z, Y, method.targets(batch), method.bank(stage))
    found = (method.weights(batch) * losses).sum(dim=-1)
    for j in range(3):
        kd = 16 * F.kl_div((z[:, j] / 4).log_softmax(-1), (t / 4).softmax(-1), reduction="none").sum(-1)
        torch.testing.assert_close(found[:, j], F.cross_entropy(z[:, j], Y, reduction="none") + kd)


def test_the_rule_believes_the_label_as_the_teacher_does() -> None:
    method = METHODS.load("rule")(DistillSection(total=3.0))
    batch, z = batch_of(2, method)
    t = batch.teachers[TEACHER]
    losses = instance_losses(z, Y, method.targets(batch), method.bank(method.stages(["a", "b"])[0]))
    found = (method.weights(batch) * losses).sum(dim=-1)
    for i in range(N):
        belief = (t[i].exp() / t[i].exp().sum())[Y[i]]
        for j in range(2):
            kd = TAU**2 * F.kl_div((z[i, j] / TAU).log_softmax(-1), (t[i] / TAU).softmax(-1), reduction="sum")
            expected = 3 * (belief * F.cross_entropy(z[i, j], Y[i]) + (1 - belief) * kd)
            assert found[i, j].item() == pytest.approx(expected.item(), rel=1e-10)


@pytest.mark.parametrize("name", ["mc-distil", "mc-distil-nops", "meta-distil", "bank"])
def test_a_bank_of_ones_own(name: str) -> None:
    """Names, targets and temperatures by the recipe; kd's temperature is `distill.tau`; the pool needs company."""
    recipe = parse_recipe(
        {
            "method": name,
            "distill": {
                "tau": 3.0,
                "losses": ["ce", "kd", "kd:pooled", {"loss": "nckd", "follows": "larger", "tau": 1}],
            },
        }
    )
    method = METHODS.load(name)(recipe.distill)
    batch, z = batch_of(3, METHODS.load("kd")(DistillSection()))
    stage = Stage(("a", "b", "c"))
    assert method.loss_names(stage) == ("ce", "kd", "kd/pooled", "nckd/larger")
    assert [term.tau for term in method.bank(stage)] == [1, 3, 3, 1]
    targets = method.targets(batch)
    assert targets.shape == (N, 3, 3, C)
    for j in range(3):
        assert torch.equal(targets[:, j, 0], batch.teachers[TEACHER])
        assert torch.equal(targets[:, j, 2], z[:, j - 1] if j else batch.teachers[TEACHER])
    assert torch.equal(targets[:, 0, 1], targets[:, 2, 1])
    assert method.loss_names(Stage(("a",))) == ("ce", "kd", "nckd/larger")


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (["ce", "nckdd"], "did you mean nckd"),
        (["ce:teacher"], "ce uses only the labels"),
        ([{"loss": "ce", "tau": 2.0}], "ce uses only the labels"),
        (["kd", "kd"], "kd is listed twice"),
        (["kd:nobody"], "distill.losses"),
        ([{"loss": "kd", "tau": 0}], "distill.losses"),
        ([{"loss": "kd", "wieght": 2}], "did you mean distill.losses.0.weight"),
        ([], "distill.losses"),
        ("ce", "distill.losses"),
        ([{}], "distill.losses"),
    ],
    ids=str,
)
def test_a_bank_that_cannot_be(losses: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        parse_recipe({"method": "bank", "distill": {"losses": losses}})
    assert "\n" not in str(error.value)


def test_every_loss_can_be_in_a_bank() -> None:
    for name in ("bank", "mc-distil"):
        recipe = parse_recipe({"method": name, "distill": {"losses": list(LOSSES)}})
        assert METHODS.load(name)(recipe.distill).loss_names(Stage(("a", "b"))) == tuple(LOSSES)


LADDER = ["big", "middle", "small"]


def test_takd_is_a_chain_from_the_largest_down() -> None:
    assert METHODS.load("takd")(DistillSection()).stages(LADDER) == [
        Stage(("big",), (TEACHER,)),
        Stage(("middle",), ("big",)),
        Stage(("small",), ("middle",)),
    ]


def test_dgkds_teachers_grow_link_by_link() -> None:
    method = METHODS.load("dgkd")(DistillSection())
    stages = method.stages(LADDER)
    assert stages == [
        Stage(("big",), (TEACHER,)),
        Stage(("middle",), (TEACHER, "big")),
        Stage(("small",), (TEACHER, "big", "middle")),
    ]
    assert method.loss_names(stages[2]) == ("alpha", "beta", "beta/big", "beta/middle")


def dgkd_batch(number: int = 0) -> BatchContext:
    """The third link's step: one student, three teachers."""
    z = torch.randn(N, 1, C, generator=torch.Generator().manual_seed(0))
    teachers = {name: torch.randn(N, C) for name in (TEACHER, "big", "middle")}
    return BatchContext(torch.arange(N), Y, z, teachers, {}, lambda: number, lambda purpose: generator(purpose, number))


def test_dgkd_weighs_the_label_q_times() -> None:
    batch = dgkd_batch()
    method = METHODS.load("dgkd")(DistillSection(lambda_=0.25))
    torch.testing.assert_close(method.weights(batch), torch.tensor([3 * 0.75, 0.25, 0.25, 0.25]))
    z, targets = batch.logits.double(), method.targets(batch)
    assert targets.shape == (N, 1, 3, C)
    weighted = (
        (method.weights(batch).double() * instance_losses(z, Y, targets.double(), label_and(3, TAU))).sum(dim=-1).mean()
    )
    log_q = F.log_softmax(z[:, 0] / TAU, -1)
    kd = sum(
        TAU**2 * F.kl_div(log_q, F.softmax(t.double() / TAU, -1), reduction="batchmean")
        for t in batch.teachers.values()
    )
    assert weighted.item() == pytest.approx((3 * 0.75 * F.cross_entropy(z[:, 0], Y) + 0.25 * kd).item(), rel=1e-10)


def test_dgkd_normalised_weighs_as_kd_does() -> None:
    w = METHODS.load("dgkd")(DistillSection(lambda_=0.25, normalise=True)).weights(dgkd_batch())
    torch.testing.assert_close(w, torch.tensor([0.75, 0.25 / 3, 0.25 / 3, 0.25 / 3]))


@pytest.mark.parametrize("normalise", [False, True])
def test_dgkd_drops_teachers_but_never_t(normalise: bool) -> None:
    """Each of the others as often as asked, for itself; q counts those kept; same step, same draw."""
    method = METHODS.load("dgkd")(DistillSection(lambda_=0.5, drop=0.25, normalise=normalise))
    kept = []
    for number in range(400):
        w = method.weights(dgkd_batch(number))
        assert torch.equal(w, method.weights(dgkd_batch(number)))
        q = int((w[1:] > 0).sum())
        assert w[1] > 0
        assert w.sum().item() == pytest.approx(1 if normalise else q)
        assert w[0].item() == pytest.approx(0.5 if normalise else 0.5 * q)
        kept.append((w[2:] > 0).float())
    share = torch.stack(kept)
    assert share.mean(dim=0).tolist() == pytest.approx([0.75, 0.75], abs=0.08)  # 3.7 standard errors
    assert share.prod(dim=1).mean().item() == pytest.approx(0.75**2, abs=0.1)
    alone = METHODS.load("dgkd")(DistillSection(drop=1.0)).weights(dgkd_batch())
    assert alone.tolist() == [0.5, 0.5, 0, 0]


def difficulty(**options: Any) -> tuple[Tensor, np.ndarray]:
    """RMC's table over 400 images with ids 7 + 3i, and the variances it must come from, by numpy."""
    draw = torch.Generator().manual_seed(3)
    z, y = 3 * torch.randn(400, 4, C, generator=draw), torch.randint(C, (400,), generator=draw)
    z[5] *= 30  # an outlier
    method = METHODS.load("rmc")(DistillSection(**options))
    table = method.prepare(PreparationData(7 + 3 * torch.arange(400), y, 2000, lambda: z))["difficulty"]
    logits = z.double().numpy()
    log_sum = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    ce = log_sum - np.take_along_axis(logits, y.numpy()[:, None, None], -1)[..., 0]
    return table, np.var(ce, axis=1, ddof=0)


def test_rmcs_difficulty_is_the_students_disagreement() -> None:
    table, v = difficulty()
    ids = 7 + 3 * torch.arange(400)
    expected = 0.3 + 0.7 * (v - v.min()) / (v.max() - v.min())
    np.testing.assert_allclose(table[ids].numpy(), expected, rtol=1e-5)
    assert table[ids].min() == pytest.approx(0.3)
    assert table[ids].max() == 1
    rest = torch.ones(2000, dtype=torch.bool)
    rest[ids] = False
    assert table[rest].isnan().all()


def test_rmc_clips_outliers() -> None:
    table, v = difficulty(alpha=0.5, clip=True)
    v = np.minimum(v, np.quantile(v, 0.99))
    expected = 0.5 + 0.5 * (v - v.min()) / (v.max() - v.min())
    np.testing.assert_allclose(table[7 + 3 * torch.arange(400)].numpy(), expected, rtol=1e-5)
    assert table.nanmean() > difficulty(alpha=0.5)[0].nanmean() + 0.02


def test_rmc_softens_the_teacher_image_by_image() -> None:
    method = METHODS.load("rmc")(DistillSection())
    batch, _ = batch_of(2, METHODS.load("kd")(DistillSection()))
    table = torch.linspace(0.3, 1, N).double()
    ids = torch.tensor([3, 0, 5, 1, 2, 4])
    batch = BatchContext(ids, Y, batch.logits, batch.teachers, {"difficulty": table}, lambda: 0, batch.draw)
    targets = method.targets(batch)
    for i in range(N):
        torch.testing.assert_close(targets[i, 0, 0], table[ids[i]] * batch.teachers[TEACHER][i])
    told = method.summary({"difficulty": torch.cat([torch.full((3,), float("nan")), table])})["difficulty"]
    assert list(told) == ["0", "0.05", "0.25", "0.5", "0.75", "0.95", "1"]
    assert told["0.25"] == pytest.approx(np.quantile(table.numpy(), 0.25))


def test_meta_distil_trains_each_student_alone() -> None:
    method = METHODS.load("meta-distil")(DistillSection())
    assert method.stages(LADDER) == [Stage((name,)) for name in LADDER]
    assert method.loss_names(Stage(("big",))) == ("alpha", "beta")


class Reading:
    """Settings that note which of them are read."""

    def __init__(self) -> None:
        self.keys: set[str] = set()

    def __getattr__(self, name: str) -> Any:
        self.keys.add(DistillSection.model_fields[name].alias or name)
        return getattr(DistillSection(), name)


@pytest.mark.parametrize("name", METHODS)
def test_a_row_says_what_its_class_does(name: str) -> None:
    """Which settings it reads, and whether it leaves the weights to a C-NET."""
    settings, row = Reading(), METHODS[name]
    method = METHODS.load(name)(settings)
    for stage in method.stages(LADDER):
        z = torch.randn(N, len(stage.students), C)
        seen = {teacher: torch.randn(N, C) for teacher in stage.teachers}
        tables = method.prepare(PreparationData(torch.arange(N), Y, N, lambda z=z: z))  # type: ignore[misc]
        batch = BatchContext(torch.arange(N), Y, z, seen, tables, lambda: 0, lambda purpose: generator(purpose))
        method.targets(batch)
        method.bank(stage)
        if not row.learned:
            method.weights(batch)
    assert set(row.settings) == settings.keys
    assert row.learned == (type(method).weights is Method.weights)


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.alone and not row.needs_two])
def test_a_single_student_is_trained_as_by_the_method_that_the_row_names(name: str) -> None:
    own, other = (METHODS.load(method)(DistillSection()) for method in (name, METHODS[name].alone))
    assert own.stages(["a"]) == other.stages(["a"])
    same_step(own, other, own.stages(["a"])[0])
    assert METHODS[name].learned == METHODS[METHODS[name].alone].learned


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.first_link])
def test_a_chains_first_link_is_trained_as_by_the_method_that_the_row_names(name: str) -> None:
    own, other = (METHODS.load(method)(DistillSection()) for method in (name, METHODS[name].first_link))
    first = own.stages(LADDER)[0]
    assert first == Stage(("big",), (TEACHER,))
    same_step(own, other, first)


def same_step(own: Method, other: Method, stage: Stage) -> None:
    """Both have the same losses, targets and weights for this stage's one student."""
    assert own.loss_names(stage) == other.loss_names(stage)
    seen = {teacher: torch.randn(N, C) for teacher in stage.teachers}
    z = torch.randn(N, 1, C)
    batch = BatchContext(torch.arange(N), Y, z, seen, {}, lambda: 0, lambda purpose: generator(purpose))
    assert torch.equal(own.targets(batch), other.targets(batch))  # type: ignore[arg-type]
    if type(own).weights is not Method.weights:
        assert torch.equal(own.weights(batch), other.weights(batch))


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.needs_two])
def test_what_needs_two_students_is_refused_with_one(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} needs two students or more: .*; use --method kd"):
        parse_recipe({"method": name, "students": ["resnet10-xxs"]})
    parse_recipe({"method": name, "students": ["resnet10-xxs", "resnet10-xxxs"]})


def test_the_papers_methods_are_the_columns_of_its_tables() -> None:
    assert papers_methods() == tomllib.loads(paper.FILE.read_text(encoding="utf-8"))["methods"]


@pytest.mark.parametrize(
    ("method", "option"),
    [
        ("mc-distil", {"total": 3.0}),
        ("kd", {"alpha": 0.5}),
        ("kd", {"drop": 0.5}),
        ("takd", {"normalise": True}),
        ("rmc", {"constants": [1, 1, 1]}),
        ("ce", {"clip": True}),
        ("dkd", {"losses": ["ce"]}),
        ("mc-distil", {"total": 2.0}),
    ],
)
def test_a_method_refuses_anothers_option(method: str, option: dict[str, Any]) -> None:
    (key,) = option
    with pytest.raises(UserError, match=rf"distill.{key} is an option of .*, not of {method}; remove it"):
        parse_recipe({"method": method, "distill": option})

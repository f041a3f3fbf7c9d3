"""The engine as a whole: the φ-step of Algorithm 1, exact resume, methods without engine changes, one student's NaN."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mcd_cli.data.loader import Batch
from mcd_cli.engine.checkpoint import read_state
from mcd_cli.engine.events import EpochEnded, Event, StageEnded, StepEnded, WarningMessage
from mcd_cli.engine.run import Run
from mcd_cli.engine.trainer import Trainer
from mcd_cli.errors import Interrupted, RunFailed
from mcd_cli.ladder.folder import RunFolder
from mcd_cli.ladder.metrics import EpochRecord, StudentRecord, degenerate
from mcd_cli.losses.bank import instance_losses, label_and
from mcd_cli.methods import METHODS, MethodSpec
from mcd_cli.methods.base import TEACHER, BatchContext, Method, PreparationData, Stage
from mcd_cli.models import ARCHITECTURES
from mcd_cli.registry import Row
from support.runs import Register, finished, go_on, make_run, signal_at, tiny_recipe, train


def trainer_of(tmp_path: Path, **changes: object) -> Trainer:
    recipe = tiny_recipe(**changes)
    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        run = make_run(recipe, folder)
        return run.trainer(run.plans[-1], rehearsal=True)


def in_double(trainer: Trainer, n: int, m: int) -> Batch:
    """The trainer and its data in float64; returns a training batch of n images, V batches hold m."""
    trainer.students.double()
    trainer.coordination.networks[0].double()
    for network in trainer.teachers.values():
        network.double()
    plain = trainer.loader.validation_batch
    val = plain(0)
    small = Batch(val.ids[:m], val.images[:m].double(), val.labels[:m], m)
    trainer.loader.validation_batch = lambda update: small  # type: ignore[method-assign]
    batch = next(iter(trainer.loader.epoch(0)))
    return Batch(batch.ids[:n], batch.images[:n].double(), batch.labels[:n], n)


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize(
    "coordinator",
    [
        {"normalise": "none"},
        {"normalise": "mean", "total": 3.0},
        {"control": "mean"},
        {"control": "shuffle"},
        {"arch": "scalar", "scale": 2.0},
        {"optimizer": "adam"},
        {"arch": "losses", "normalise": "mean"},
        {"arch": "losses", "normalise": "image", "shared": False},
    ],
    ids=lambda c: "-".join(map(str, c.values())),
)
def test_phi_gradient_end_to_end(tmp_path: Path, coordinator: dict, steps_before: int) -> None:
    check_phi(tmp_path, coordinator, steps_before)


@pytest.mark.parametrize("steps_before", [0, 1])
@pytest.mark.parametrize("coordinator", [{"normalise": "mean"}, {"arch": "losses"}, {"optimizer": "adam"}], ids=str)
def test_phi_gradient_with_settings_of_single_students(tmp_path: Path, coordinator: dict, steps_before: int) -> None:
    """Another learning rate, weight decay and total weight for one of them."""
    own = {"lr": 0.2, "weight_decay": 0.03, "total": 1.7}
    check_phi(tmp_path, coordinator, steps_before, student={"resnet10-xxxs": own})


@pytest.mark.parametrize("augment", [{"mixup": 1.0}, {"cutmix": 1.0}], ids=str)
@pytest.mark.parametrize("coordinator", [{"normalise": "mean"}, {"arch": "losses"}], ids=str)
def test_phi_gradient_with_mixed_images(tmp_path: Path, coordinator: dict, augment: dict) -> None:
    check_phi(tmp_path, coordinator, 1, augment=augment)


def check_phi(tmp_path: Path, coordinator: dict, steps_before: int, **changes: dict) -> None:
    """C-NET's gradient after a step of the engine = double backward through that whole step, written out here."""
    trainer = trainer_of(tmp_path, method="mc-distil", coordinator={**coordinator, "every": 1}, **changes)
    student = changes.get("student", {})
    batch = in_double(trainer, n=16, m=12)
    (live_cnet,) = trainer.coordination.networks
    with torch.no_grad():  # a C-NET with opinions: its zero head would hide most of φ
        for p in live_cnet.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).double())
    for _ in range(steps_before):
        trainer.step(batch)

    students, cnet = copy.deepcopy(trainer.students), copy.deepcopy(live_cnet)
    theta = {name: p.detach().clone().requires_grad_() for name, p in students.named_parameters()}
    phi = {name: p.detach().clone().requires_grad_() for name, p in cnet.named_parameters()}
    seen = trainer.mixed(batch)
    z = functional_call(students, theta, (seen.images,))
    with torch.no_grad():
        z_teacher = trainer.teachers[TEACHER](seen.images)
        at_label = nn.functional.one_hot(seen.labels, z.shape[-1]).bool()
        z_pooled = torch.where(at_label, z.max(dim=1).values, z.min(dim=1).values)
    targets = torch.stack([z_teacher, z_pooled], dim=1)[:, None]
    order = torch.randperm(16, generator=trainer.draw("shuffle"))
    losses = instance_losses(z, seen.labels, targets, label_and(2, 2.0))
    if seen.second is not None:  # cross-entropy with soft labels in the place of the label's
        soft = seen.share * at_label + (1 - seen.share) * nn.functional.one_hot(seen.second, z.shape[-1])
        losses = torch.cat([-(soft[:, None] * z.log_softmax(-1)).sum(-1, keepdim=True), losses[:, :, 1:]], dim=-1)
    of_teacher = nn.functional.cross_entropy(z_teacher, seen.labels, reduction="none")
    costs = torch.cat([losses.detach().view(16, -1), of_teacher[:, None]], dim=1)
    w = cnet.weigh(functional_call(cnet, phi, (seen.images, costs)), order)
    totals = torch.tensor([student.get(name, {}).get("total", 1.0) for name in trainer.students.names])[:, None]
    loss = (w * totals * losses).sum() / 16
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    sgd = trainer.plan.sgd
    fallen = (1 + math.cos(math.pi * trainer.step_index / trainer.num_steps)) / 2
    new = {}
    for (name, value), g in zip(theta.items(), gradients, strict=True):
        live = dict(trainer.students.named_parameters())[name]
        own = {**sgd, **student.get(name.split(".")[1], {})}
        g = g + own["weight_decay"] * value
        buffer = trainer.optimizer.state.get(live, {}).get("momentum_buffer")
        new[name] = value - own["lr"] * fallen * (g if buffer is None else sgd["momentum"] * buffer.clone() + g)
    val = trainer.loader.validation_batch(0)
    z_val = functional_call(students, new, (val.images,))
    l_val = sum(nn.functional.cross_entropy(z_val[:, j], val.labels) for j in range(z_val.shape[1]))
    expected = dict(zip(phi, torch.autograd.grad(l_val, list(phi.values())), strict=True))
    divided = 1.0 if coordinator.get("optimizer") == "adam" else sgd["lr"] * fallen

    trainer.step(batch)
    largest = max(float(g.abs().max()) for g in expected.values()) / divided
    assert largest > 1e-7
    for name, p in live_cnet.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[name] / divided, rtol=1e-8, atol=1e-10 * largest)


def test_same_seed_same_bytes(uninterrupted: Path, tmp_path: Path) -> None:
    train(tiny_recipe(), tmp_path / "again")
    assert finished(tmp_path / "again") == finished(uninterrupted)
    train(tiny_recipe(seed=1), tmp_path / "other")
    file = "resnet10-xxs.safetensors"
    assert finished(tmp_path / "other")[file] != finished(uninterrupted)[file]


@pytest.mark.parametrize(("stage", "step"), [("warm-start", 2), ("distill", 3), ("distill", 4), ("distill", 8)])
def test_resume_is_exact(uninterrupted: Path, tmp_path: Path, stage: str, step: int) -> None:
    """A signal after any step, an epoch's last one included; going on gives the same bytes."""
    out = tmp_path / "run"
    with pytest.raises(Interrupted, match="mcd distill --resume"):
        train(tiny_recipe(), out, signal_at(stage, step))
    assert not (out / "ladder.json").exists()
    go_on(out)
    assert finished(out) == finished(uninterrupted)


def test_resume_passes_over_a_torn_checkpoint(uninterrupted: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(tiny_recipe(), out, signal_at("distill", 7))
    newest = max((out / "checkpoint").glob("state-*"))
    newest.write_bytes(newest.read_bytes()[:-100])
    said: list[str] = []
    go_on(out, lambda event: said.append(event.text) if isinstance(event, WarningMessage) else None)
    assert any("damaged" in line for line in said)
    assert finished(out) == finished(uninterrupted)


class Noisy(Method):
    """Needs sample ids, a pass before training, and randomness per step: nothing else of the engine knows it."""

    losses = ("alpha", "beta")

    def prepare(self, data: PreparationData) -> dict[str, Tensor]:
        loss = nn.functional.cross_entropy(data.logits()[:, 0], data.labels, reduction="none")
        table = torch.full((data.num_images,), float("nan"))
        table[data.ids] = loss
        return {"difficulty": table}

    def targets(self, batch: BatchContext) -> Tensor:
        return batch.teachers[TEACHER][:, None, None]

    def weights(self, batch: BatchContext) -> Tensor:
        difficulty = batch.tables["difficulty"][batch.ids]
        assert torch.isfinite(difficulty).all()
        keep = torch.rand(len(batch.ids), generator=batch.draw("keep"))
        return torch.stack([keep, difficulty], dim=-1)[:, None]


def test_the_seam_takes_a_new_method(tmp_path: Path, register: Register) -> None:
    """One class and one row; it also resumes exactly, its table and its randomness included."""
    register(METHODS, "noisy", MethodSpec(f"{__name__}:Noisy", "noisy weights", ("tau",)))
    recipe = tiny_recipe(method="noisy")
    train(recipe, tmp_path / "whole")

    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", 5))
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")


class WithDropout(nn.Sequential):
    """A student whose forward draws from torch's global generator."""

    def __init__(self, num_classes: int) -> None:
        super().__init__(nn.Flatten(), nn.Linear(3 * 8 * 8, 16), nn.Dropout(0.5), nn.ReLU(), nn.Linear(16, num_classes))


def test_dropout_is_a_function_of_the_step(tmp_path: Path, register: Register) -> None:
    register(ARCHITECTURES, "with-dropout", Row(f"{__name__}:WithDropout"))
    recipe = tiny_recipe(students=["with-dropout", "resnet10-xxxs"])
    train(recipe, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(recipe, tmp_path / "cut", signal_at("distill", 3))
    torch.rand(7)  # whatever else has drawn in between
    go_on(tmp_path / "cut")
    assert finished(tmp_path / "cut") == finished(tmp_path / "whole")


def test_the_meta_step_sees_the_real_steps_masks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, register: Register
) -> None:
    """The losses that the forward-mode pass differentiates are those of the real step, dropout included."""
    register(ARCHITECTURES, "with-dropout", Row(f"{__name__}:WithDropout"))
    trainer = trainer_of(tmp_path, students=["with-dropout"], method="mc-distil-nops", coordinator={"every": 1})
    seen: list[Tensor] = []
    plain = instance_losses

    def note(z: Tensor, *rest: object) -> Tensor:
        seen.append(z.detach().clone())
        return plain(z, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("mcd_cli.engine.trainer.instance_losses", note)
    monkeypatch.setattr(
        "mcd_cli.ops.meta_gradient.directional_losses",
        lambda students, theta, v, x, losses: losses(functional_call(students, theta, (x,))).detach(),
    )
    trainer.step(next(iter(trainer.loader.epoch(0))))
    real, again = seen
    assert torch.equal(real, again)


class Chain(Method):
    """Stages one after another, each student taught by the one before it."""

    losses = ("alpha", "beta")

    def stages(self, students: list[str]) -> list[Stage]:  # type: ignore[override]
        return [Stage((name,), (before,)) for before, name in zip([TEACHER, *students], students, strict=False)]

    def targets(self, batch: BatchContext) -> Tensor:
        (z,) = batch.teachers.values()
        return z[:, None, None]

    def weights(self, batch: BatchContext) -> Tensor:
        return batch.logits.new_tensor([0.0, 1.0])


def test_the_seam_takes_a_chain(tmp_path: Path, register: Register) -> None:
    register(METHODS, "chain", MethodSpec(f"{__name__}:Chain", "a chain", ("tau",)))
    stages: list[str] = []
    ladder = train(
        tiny_recipe(method="chain"),
        tmp_path / "run",
        lambda event: stages.append(event.stage) if isinstance(event, StageEnded) else None,
    )
    assert stages[-2:] == ["distill/resnet10-xxs", "distill/resnet10-xxxs"]
    assert [student.name for student in ladder.students] == ["resnet10-xxs", "resnet10-xxxs"]


@pytest.mark.parametrize("method", ["ce", "kd", "mc-distil-nops", "mc-distil"])
def test_one_students_nan_reaches_nobody(tmp_path: Path, method: str) -> None:
    recipe = tiny_recipe(method=method)
    run: Run | None = None

    def poison(event: Event) -> None:
        if event == StepEnded("distill", 5):
            assert run is not None
            with torch.no_grad():
                next(run.live.students.networks["resnet10-xxxs"].parameters()).fill_(float("nan"))

    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        run = make_run(recipe, folder, poison)
        with pytest.raises(RunFailed, match="logits of resnet10-xxxs are not finite at step 5 of stage distill"):
            run.train()
    for name, p in run.live.students.named_parameters():
        assert torch.isfinite(p).all() or "xxxs" in name
    newest = max((tmp_path / "run" / "checkpoint").glob("state-*"))
    assert newest.stat().st_size > 0


@pytest.mark.parametrize(
    ("coordinator", "updates"),
    [
        ({"every": 3}, [2, 3]),  # steps 0 3 | 6
        ({"every": 2, "unit": "epoch"}, [4, 4]),  # all four steps of epoch 0, none of epoch 1
        ({"every": 1, "control": "frozen"}, [0, 0]),
    ],
)
def test_when_c_net_learns(tmp_path: Path, coordinator: dict, updates: list[int]) -> None:
    seen: list[int] = []

    def note(event: Event) -> None:
        if isinstance(event, EpochEnded) and event.record.stage == "distill":
            seen.append(event.record.coordinator_updates)

    train(tiny_recipe(students=["resnet10-xxxs"], coordinator={"unit": "step", **coordinator}), tmp_path / "run", note)
    assert seen == updates


def test_metrics_tell_c_nets_course(uninterrupted: Path) -> None:
    lines = [json.loads(line) for line in (uninterrupted / "metrics.jsonl").read_text().splitlines()]
    assert [line["stage"] for line in lines][-3:] == ["warm-start", "distill", "distill"]
    first, last = lines[-2]["students"]["resnet10-xxs"], lines[-1]["students"]["resnet10-xxs"]
    # 4 steps, updates at 0 and 2: the first two steps saw the zero head's 0.5
    assert set(first["weights"]) == {"alpha", "beta", "gamma"}
    assert first["weights"]["alpha"] == pytest.approx(0.5, abs=0.05)
    assert last["spread"]["alpha"] > 0
    assert last["total_weight"] == pytest.approx(sum(last["weights"].values()))
    assert lines[-1]["coordinator_updates"] == 4


def test_degenerate_weights_are_told() -> None:
    student = StudentRecord(
        train_accuracy=0.5,
        losses=dict.fromkeys("abc", 1.0),
        weights=dict.fromkeys("abc", 0.97),
        total_weight=2.91,
        spread=dict.fromkeys("abc", 0.01),
        val_accuracy=0.5,
    )
    record = EpochRecord(stage="distill", epoch=1, step=4, lr=0.1, students={"s": student})
    assert "learning rate" in next(degenerate(record))
    assert not list(degenerate(replace(record, normalise="mean")))
    uneven = replace(student, spread={"a": 0.05, "b": 0.0, "c": 0.0})
    assert not list(degenerate(replace(record, students={"s": uneven})))


def test_warm_start_is_shared_and_position_does_not_matter(tmp_path: Path) -> None:
    """A student's warm start is the same to the bit alone, in company, and whatever its place."""
    ladders = ["resnet10-xxxs"], ["resnet10-xxs", "resnet10-xxxs"], ["resnet10-xxxs", "resnet10-xs"]
    starts = []
    for i, students in enumerate(ladders):
        train(tiny_recipe(students=students, method="kd", epochs=1), tmp_path / str(i))
        (file,) = (tmp_path / str(i) / "checkpoint").glob("warm-start-*")
        kept = read_state(file).tensors
        starts.append({key: value for key, value in kept.items() if "/resnet10-xxxs:" in key})
    assert len(starts[0]) > 20
    for other in starts[1:]:
        assert starts[0].keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in starts[0].items())


def test_a_teacher_that_never_saw_some_classes(tmp_path: Path) -> None:
    """It trains on the other classes' images alone, and calls nothing by the names of those; its students see all."""
    recipe = tiny_recipe(teacher={"arch": "resnet10-xs", "epochs": 3, "lr": 0.05, "unseen": 0.3})
    with RunFolder.create(str(tmp_path / "run"), recipe) as folder:
        run = make_run(recipe, folder)
        run.start(TEACHER)
    dataset = run.dataset
    of_teacher, of_students = (run.trainer(plan, rehearsal=True).loader.dataset.train for plan in run.plans[:2])
    assert torch.equal(of_students, dataset.train)
    hidden = sorted(set(range(10)) - set(dataset.labels[of_teacher].tolist()))
    assert len(hidden) == 3
    assert torch.equal(of_teacher, dataset.train[~torch.isin(dataset.labels[dataset.train], torch.tensor(hidden))])
    assert run.teacher is not None
    guesses = run.teacher.network(dataset.images[dataset.val] / 255).argmax(dim=1)
    assert torch.isin(guesses, torch.tensor(hidden)).float().mean() < 0.1  # of V, 0.3 are

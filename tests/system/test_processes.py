"""Training in several processes equals one process that runs the same shards."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from mcd_cli.data.loader import Batch
from mcd_cli.data.mixing import Mixing
from mcd_cli.engine.checkpoint import read_state
from mcd_cli.losses.bank import instance_losses, label_and
from mcd_cli.losses.targets import pooled
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.models.students import Students
from support import INSTALLED, TESTS
from support.shards import EVERY, NUM_STEPS, trainer_of, walk

WORLD = 2
FIELDS = ("ids", "images", "labels", "second")


def processes(folder: Path, *cases: str) -> list[subprocess.Popen[str]]:
    environment = {
        **os.environ,
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(INSTALLED), str(TESTS)]),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", "support.shards", str(rank), str(WORLD), str(folder), *cases],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two gloo processes walk each case."""
    folder = tmp_path_factory.mktemp("together")
    for process in processes(folder, "paper", "mean-in-double", "sync-in-double", "mixed"):
        _, said = process.communicate(timeout=300)
        assert process.returncode == 0, said
    return folder


def in_shards(model: nn.Module, parameters: dict[str, Tensor], *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Each shard through its own BatchNorm: all outputs, and the running statistics averaged over shards."""
    outputs, moved = [], []
    for shard in zip(*(x.tensor_split(WORLD) for x in inputs), strict=True):
        buffers = {name: b.clone() for name, b in model.named_buffers()}
        outputs.append(functional_call(model, {**parameters, **buffers}, shard))
        moved.append({name: b for name, b in buffers.items() if "running_" in name})
    return torch.cat(outputs), {name: sum(b[name] for b in moved) / WORLD for name in moved[0]}


def by_double_backward(case: str, folder: Path) -> dict[str, Tensor]:
    """Algorithm 1 in one process over shards, SGD and Eq. 9 written out; C-NET's own AdamW is torch's."""
    start = trainer_of(case, folder)
    students, loader = copy.deepcopy(start.students), start.loader
    (cnet,) = copy.deepcopy(start.coordination.networks)
    theta = {name: p.detach().clone().requires_grad_() for name, p in students.named_parameters()}
    phi = dict(cnet.named_parameters())
    matrices = [p for p in phi.values() if p.ndim > 1]
    vectors = [p for p in phi.values() if p.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(groups, lr=1e-3, weight_decay=1e-4)
    momentum: dict[str, Tensor] = {}
    batches = (batch for epoch in range(2) for batch in loader.epoch(epoch))
    total = 2 * loader.num_steps

    for t, batch in zip(range(NUM_STEPS), batches, strict=False):
        learns = t % EVERY == 0
        x, y = batch.images, batch.labels
        eta = 0.05 * 0.5 * (1 + math.cos(math.pi * t / total))
        z, statistics = in_shards(students, theta, x)
        with torch.no_grad():
            z_teacher = start.teachers["teacher"](x)
        targets = torch.stack([z_teacher, pooled(z.detach(), y)], dim=1)[:, None]
        losses = instance_losses(z, y, targets, label_and(2, 2.0))
        of_teacher = nn.functional.cross_entropy(z_teacher, y, reduction="none")
        p, of_cnet = in_shards(cnet, phi, x, torch.cat([losses.detach().flatten(1), of_teacher[:, None]], dim=1))
        loss = (cnet.weigh(p) * losses).sum(dim=(1, 2)).mean()
        gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=learns)
        after = {}
        for (name, value), gradient in zip(theta.items(), gradients, strict=True):
            d = gradient + 1e-4 * value.detach()
            momentum[name] = d if name not in momentum else 0.95 * momentum[name] + d
            after[name] = value - eta * momentum[name]
        for name, b in students.named_buffers():
            b.copy_(statistics.get(name, b))
        for name, b in cnet.named_buffers():
            b.copy_(of_cnet.get(name, b))
        if learns:
            val = loader.validation_batch(t // EVERY)
            z_val, _ = in_shards(students, after, val.images)
            l_val = sum(nn.functional.cross_entropy(z_val[:, j], val.labels) for j in range(z_val.shape[1]))
            for q, g in zip(phi.values(), torch.autograd.grad(l_val, list(phi.values())), strict=True):
                q.grad = g / eta  # AdamW sees the meta-gradient with the students' learning rate divided out
            adamw.step()
        momentum = {name: value.detach() for name, value in momentum.items()}
        theta = {name: value.detach().requires_grad_() for name, value in after.items()}

    return {
        **{f"students:{name}": value.detach() for name, value in [*theta.items(), *students.named_buffers()]},
        **{f"coordinator:{name}": value.detach() for name, value in [*phi.items(), *cnet.named_buffers()]},
    }


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of any tensor, relative to its own largest value."""
    floats = {name: value for name, value in expected.items() if value.is_floating_point() and name in found}
    assert len(floats) > 50
    return max(
        float((found[name] - value).abs().max() / value.abs().max().clamp(min=1e-3)) for name, value in floats.items()
    )


def sharded(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A module's forward, shard by shard through its own BatchNorm."""
    inside = False

    def of_shards(module: nn.Module, *inputs: Tensor) -> Tensor:
        nonlocal inside
        if inside:
            return forward(module, *inputs)
        inside = True
        outputs, statistics = in_shards(module, {}, *inputs)
        inside = False
        for name, b in module.named_buffers():
            b.copy_(statistics.get(name, b))
        return outputs

    return of_shards


def test_two_processes_are_one_with_two_shards(together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 float32 steps, C-NET learning at 0, 7 and 14: weights, momenta, running statistics, meters and C-NET alike."""
    for module in (Students, Coordinator):
        monkeypatch.setattr(module, "forward", sharded(module.forward))
    alone = trainer_of("paper", tmp_path)
    walk(alone)
    found = read_state(together / "paper-0.safetensors").tensors
    assert apart(found, alone.state_dict().tensors) < 1e-4


def test_two_processes_against_double_backward(together: Path, tmp_path: Path) -> None:
    """The same in float64, against Algorithm 1 written out with a double backward through both shards."""
    found = read_state(together / "mean-in-double-0.safetensors").tensors
    assert apart(found, by_double_backward("mean-in-double", tmp_path)) < 1e-6


def test_synced_batch_norm_is_one_process(together: Path, tmp_path: Path) -> None:
    """--sync-bn: two processes train what one does with the whole batch, meta steps included."""
    alone = trainer_of("sync-in-double", tmp_path)
    walk(alone)
    found = read_state(together / "sync-in-double-0.safetensors").tensors
    assert apart(found, alone.state_dict().tensors) < 1e-6


def test_images_are_mixed_within_a_process(together: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each shard by itself, with the same draws."""
    plain = Mixing.__call__

    def of_shards(mixing: Mixing, batch: Batch, draws: torch.Generator) -> Batch:
        state = draws.get_state()
        shards = zip(*(x.tensor_split(WORLD) for x in (batch.ids, batch.images, batch.labels)), strict=True)
        mixed = [plain(mixing, Batch(*shard, batch.size), draws.set_state(state)) for shard in shards]
        ids, images, labels, second = (torch.cat([getattr(m, f) for m in mixed]) for f in FIELDS)
        return Batch(ids, images, labels, batch.size, second, mixed[0].share)

    for module in (Students, Coordinator):
        monkeypatch.setattr(module, "forward", sharded(module.forward))
    monkeypatch.setattr(Mixing, "__call__", of_shards)
    alone = trainer_of("mixed", tmp_path)
    walk(alone)
    found = read_state(together / "mixed-0.safetensors").tensors
    assert apart(found, alone.state_dict().tensors) < 1e-4


@pytest.mark.parametrize("case", ["paper", "mean-in-double", "sync-in-double", "mixed"])
def test_every_process_holds_the_same_bits(together: Path, case: str) -> None:
    first, second = ((together / f"{case}-{rank}.safetensors").read_bytes() for rank in range(WORLD))
    assert first == second


def test_one_that_fails_ends_all(tmp_path: Path) -> None:
    """Within seconds, with its own error; the other points at it."""
    start = time.monotonic()
    said = []
    for process in processes(tmp_path, "broken"):
        said.append(process.communicate(timeout=120)[1])
        assert process.returncode == 1
    assert "another process of this run has failed" in said[0]
    assert "logits of resnet10-xxs are not finite at step 0" in said[1]
    assert time.monotonic() - start < 60

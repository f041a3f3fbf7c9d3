"""The peers that ours is compared with: plain PyTorch scripts, torchdistill, and double backward for the meta step.

Each takes the models, data, batch size and optimiser from one of our trainers and makes one step per call.
"""

from __future__ import annotations

import copy
import importlib.util
import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.data import DataLoader, Dataset, RandomSampler
from torchvision.transforms import v2

from mcd_cli.data.loader import Batch
from mcd_cli.engine.coordination import costs
from mcd_cli.engine.trainer import Trainer
from mcd_cli.models import build
from mcd_cli.models.students import forward_in_chunks
from mcd_cli.ops.losses import cross_entropy, instance_losses

TAU, LAMBDA = 2.0, 0.5
SGD: dict[str, Any] = {"lr": 0.05, "momentum": 0.95}


class Pictures(Dataset[tuple[Tensor, int]]):
    """The training images one at a time, as PIL pictures through torchvision's transforms."""

    def __init__(self, trainer: Trainer) -> None:
        dataset = trainer.loader.dataset
        self.pictures = [v2.functional.to_pil_image(image) for image in dataset.images[dataset.train]]
        self.labels = dataset.labels[dataset.train].tolist()
        size = dataset.images.shape[-1]
        self.transform = v2.Compose(
            [
                v2.RandomCrop(size, padding=size // 8),
                v2.RandomHorizontalFlip(),
                v2.ColorJitter(0.1, 0.1, 0.1),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(dataset.mean, dataset.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.pictures[i]), self.labels[i]


def raw_teacher(trainer: Trainer) -> nn.Module:
    """The teacher's network in row-major layout, for images that are already normalised."""
    network = copy.deepcopy(trainer.teachers["teacher"].network)
    assert isinstance(network, nn.Module)
    return network.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload, no-any-return]


def fresh_students(trainer: Trainer) -> list[nn.Module]:
    """Newly initialised networks with the students' architectures."""
    num_classes = trainer.loader.dataset.num_classes
    return [build(arch, num_classes).to(trainer.hardware.device).train() for arch in trainer.students.archs.values()]


class PlainWay:
    """Trains every student separately, as the usual scripts do, and runs the teacher for each of them."""

    def __init__(self, trainer: Trainer, workers: int) -> None:
        self.device = trainer.hardware.device
        self.teacher = raw_teacher(trainer)
        self.students = fresh_students(trainer)
        self.optimizers = [torch.optim.SGD(s.parameters(), **SGD) for s in self.students]
        loader = DataLoader(
            Pictures(trainer),
            trainer.loader.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=self.device.type == "cuda",
        )
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(loader))

    def step(self) -> None:
        """One batch for each student."""
        for student, optimizer in zip(self.students, self.optimizers, strict=True):
            x, y = (t.to(self.device, non_blocking=True) for t in next(self.batches))
            with torch.no_grad():
                z_teacher = self.teacher(x)
            z = student(x)
            kd = F.kl_div(F.log_softmax(z / TAU, 1), F.softmax(z_teacher / TAU, 1), reduction="batchmean") * TAU**2
            loss = (1 - LAMBDA) * F.cross_entropy(z, y) + LAMBDA * kd
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


class TorchDistill:
    """torchdistill's distillation box, loss and loop (Matsubara 2021) for a trainer with one student."""

    available = importlib.util.find_spec("torchdistill") is not None

    def __init__(self, trainer: Trainer, workers: int) -> None:
        from torchdistill.core.distillation import get_distillation_box

        (student,) = fresh_students(trainer)
        self.device = trainer.hardware.device
        loss = {"temperature": TAU, "alpha": 1 - LAMBDA, "reduction": "batchmean"}
        for side in ("student", "teacher"):
            loss |= {f"{side}_module_path": ".", f"{side}_module_io": "output"}
        kwargs = {"batch_size": trainer.loader.batch_size, "num_workers": workers, "drop_last": True}
        pinned = {"pin_memory": self.device.type == "cuda", "persistent_workers": workers > 0}
        only_batch = {"forward_proc": "forward_batch_only"}
        config = {
            "num_epochs": 1,
            "train_data_loader": {
                "dataset_id": "train",
                "sampler": {"class_or_func": RandomSampler},
                "kwargs": kwargs | pinned,
            },
            "teacher": only_batch | {"requires_grad": False},
            "student": only_batch,
            "criterion": {
                "key": "WeightedSumLoss",
                "kwargs": {"sub_terms": {"kd": {"criterion": {"key": "KDLoss", "kwargs": loss}, "weight": 1.0}}},
            },
            "optimizer": {"key": "SGD", "kwargs": dict(SGD)},
        }
        data = {"train": Pictures(trainer)}
        self.box = get_distillation_box(raw_teacher(trainer), student, data, config, self.device, None, False, 1)
        self.box.pre_epoch_process(epoch=0)
        self.batches: Iterator[Any] = itertools.chain.from_iterable(itertools.repeat(self.box.train_data_loader))

    def step(self) -> None:
        x, y, extra = next(self.batches)
        x, y = x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)
        self.box.post_forward_process(loss=self.box.forward_process(x, y, extra))


def double_backward(trainer: Trainer, batch: Batch) -> None:
    """C-NET's gradient by the usual double backward, through a graph of the students' gradient, including the step."""
    (cnet,) = trainer.coordination.networks
    students, overrides = trainer.students, trainer.students.overrides
    students.overrides = cnet.overrides = nullcontext()  # torch's BatchNorm supports second derivatives
    with torch.no_grad():
        z_teacher = forward_in_chunks(trainer.teachers["teacher"], batch.images)[:, None, None]
    theta = {n: p.detach().clone().requires_grad_() for n, p in students.named_parameters()}
    z = _pure(students, theta, batch.images)
    targets = torch.cat([z_teacher] * (len(trainer.loss_names) - 1), dim=2)
    losses = instance_losses(z, batch.labels, targets, TAU)
    loss_inputs = costs(losses, {"teacher": z_teacher[:, 0, 0]}, batch.labels)
    w = cnet.weigh(cnet(batch.images, loss_inputs))
    loss = (w * losses).sum() / batch.size
    gradients = torch.autograd.grad(loss, list(theta.values()), create_graph=True)
    after = {n: p - 0.05 * g for (n, p), g in zip(theta.items(), gradients, strict=True)}
    val = trainer.loader.validation_batch(0)
    l_val = cross_entropy(_pure(students, after, val.images), val.labels).mean(dim=0).sum()
    torch.autograd.grad(l_val, list(cnet.parameters()))
    students.overrides = cnet.overrides = overrides


def _pure(model: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    buffers = {name: b.clone() for name, b in model.named_buffers()}
    out: Tensor = functional_call(model, {**parameters, **buffers}, (x,))
    return out

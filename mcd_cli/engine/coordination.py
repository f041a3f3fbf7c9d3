"""The loss weights of a step: constants from the method, or C-NET's outputs, which it learns (Eq. 5 and 9)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mcd_cli.data.dataset import Dataset
from mcd_cli.engine.checkpoint import StateParts, optimizer_tensors, restore_optimizer
from mcd_cli.engine.hardware import Hardware
from mcd_cli.engine.instance_weights import InstanceWeights
from mcd_cli.engine.meters import Meters
from mcd_cli.engine.non_finite import NonFiniteGuard
from mcd_cli.engine.optimizers import StepSizes, coordinator_optimizer, gradients
from mcd_cli.engine.results import Weights
from mcd_cli.engine.stages import StagePlan
from mcd_cli.ladder.metrics import ImagesRecord
from mcd_cli.losses.ce import cross_entropy
from mcd_cli.methods.base import BatchContext
from mcd_cli.models.coordinator import Coordinator
from mcd_cli.models.students import Students, seeded
from mcd_cli.ops import meta_gradient

CoordinatorInputs = tuple[Tensor, ...]
"""C-NET's arguments: the images, [n, 3, H, W], and, if it sees losses, their `costs`, [n, k·c + teachers]."""


class Coordination:
    """Coordination without a C-NET: the method sets constant weights, and nothing is learned."""

    networks: tuple[Coordinator, ...] = ()
    normalise: str | None = None
    """How C-NET's weights are normalised; None without one."""

    def __init__(self, plan: StagePlan, students: Students, device: torch.device) -> None:
        self.method = plan.method
        totals = [[plan.total_of(name)] for name in students.names]
        self.totals = None if totals == [[1.0]] * len(totals) else torch.tensor(totals, device=device)  # [k, 1]

    def learns(self, step_index: int, epoch: int) -> bool:
        """Whether φ follows through the step of that index, in that epoch."""
        return False

    def inputs(self, x: Tensor, losses: Tensor, batch: BatchContext) -> CoordinatorInputs:
        """C-NET's inputs in a step. x: images [n, 3, H, W]; losses: [n, k, c]."""
        return ()

    def outputs(self, inputs: CoordinatorInputs, batch: BatchContext, n: int, autocast: bool) -> Tensor:
        """C-NET's outputs p; without a C-NET the weights themselves, broadcastable to [n, k, c].

        n: images of the batch over all processes; autocast: whether to compute in the run's precision or in float32.
        """
        return self.method.weights(batch)

    def weigh(self, p: Tensor) -> Tensor:
        """The loss weights w of this process's shard of the batch. p: from `outputs`."""
        return p if self.totals is None else p * self.totals

    def record(self, meters: Meters, ids: Tensor, p: Tensor, w: Tensor) -> None:
        """Add a step to the statistics. p, w: of the whole batch, [n, k, c]; ids: of this process's shard."""

    def update(self, inputs: CoordinatorInputs, directional: Tensor, c: StepSizes, n: int) -> None:
        """φ^t → φ^{t+1} by Eq. 9. directional: ⟨v_j, ∇ℓ_ijc⟩ of this process's shard, [n, k, c]; c: the step's c_j."""

    def images(self) -> Mapping[str, ImagesRecord]:
        """C-NET's weights by training image, per student, for the stage's last line of metrics.jsonl."""
        return {}

    def state_dict(self) -> StateParts:
        """C-NET's parts of a checkpoint. A step writes to these tensors in place."""
        return {}

    def load_state_dict(self, parts: Mapping[str, Weights]) -> None:
        """parts: all parts of the checkpoint."""


class LearnedCoordination(Coordination):
    """C-NET, g_φ: sets the weight of each loss of each image for each student, and learns from L_val."""

    def __init__(
        self,
        plan: StagePlan,
        students: Students,
        dataset: Dataset,
        hardware: Hardware,
        non_finite: NonFiniteGuard,
        draw: Callable[[str], torch.Generator],
    ) -> None:
        """draw: a random generator for the current step, by purpose."""
        super().__init__(plan, students, hardware.device)
        self.section = plan.coordinator
        self.names = students.names
        self.loss_names = plan.method.loss_names(plan.stage)
        self.dataset = dataset
        self.hardware = hardware
        self.processes = hardware.processes
        self.draw = draw
        coordinator = new_coordinator(plan, students, dataset)
        self.coordinator = coordinator.to(hardware.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.networks = (self.coordinator,)
        self.normalise = self.section.normalise
        # c_j with what all students share divided out: the learning rate's schedule, momentum
        self.relative = [plan.sgd_of(name)["lr"] / plan.sgd["lr"] for name in students.names]
        self.optimizer = coordinator_optimizer(self.coordinator, self.section, capturable=non_finite.deferred)
        non_finite.halt(self.optimizer)
        self.instance_weights = InstanceWeights(
            len(dataset.labels), len(self.names), len(self.loss_names), hardware.device
        )

    def learns(self, step_index: int, epoch: int) -> bool:
        count = step_index if self.section.unit == "step" else epoch
        return self.section.control != "frozen" and count % self.section.every == 0

    def inputs(self, x: Tensor, losses: Tensor, batch: BatchContext) -> CoordinatorInputs:
        return (x, costs(losses, batch.teachers, batch.labels)) if self.coordinator.sees_losses else (x,)

    def outputs(self, inputs: CoordinatorInputs, batch: BatchContext, n: int, autocast: bool) -> Tensor:
        """p for the whole batch, [n, k, c] in (0, 1)."""
        with self.hardware.autocast(autocast):
            p: Tensor = self.coordinator(*inputs)
        return self.processes.gather(p, n)

    def weigh(self, p: Tensor) -> Tensor:
        """w for this process's shard. p: for the whole batch, whose means and permutation count."""
        permutation = None
        if self.section.control == "shuffle":
            permutation = torch.randperm(len(p), generator=self.draw("shuffle")).to(p.device)
        return super().weigh(self.processes.shard(self.coordinator.weigh(p, permutation)))

    def record(self, meters: Meters, ids: Tensor, p: Tensor, w: Tensor) -> None:
        meters.add_outputs(p, w)
        self.instance_weights.add(self.processes.gather(ids, len(w)), w)

    def update(self, inputs: CoordinatorInputs, directional: Tensor, c: StepSizes, n: int) -> None:
        literal = self.section.optimizer == "adam"
        gradient = meta_gradient.weight_gradient(directional, c if literal else self.relative, n)
        phi = dict(self.coordinator.named_parameters())
        p = meta_gradient.without_side_effects(self.coordinator, phi, *inputs)
        w = self.weigh(self.processes.gather(p, n))
        self.optimizer.zero_grad()
        (w * gradient).sum().backward()
        self.processes.all_reduce_(gradients(self.coordinator))
        self.optimizer.step()

    def images(self) -> Mapping[str, ImagesRecord]:
        return self.instance_weights.summary(self.names, self.loss_names, self.dataset)

    def state_dict(self) -> StateParts:
        return {
            "coordinator": self.coordinator.state_dict(),
            "coordinator_optimizer": optimizer_tensors(self.optimizer),
            "weighed": self.instance_weights.state_dict(),
        }

    def load_state_dict(self, parts: Mapping[str, Weights]) -> None:
        self.coordinator.load_state_dict(parts["coordinator"])
        restore_optimizer(self.optimizer, parts.get("coordinator_optimizer", {}))
        self.instance_weights.load_state_dict(parts["weighed"])


def new_coordinator(plan: StagePlan, students: Students, dataset: Dataset) -> Coordinator:
    """C-NET with its initial weights, a function of the run's seed."""
    section = plan.coordinator
    return seeded(
        lambda: Coordinator(
            section.arch,
            len(students.names),
            len(plan.method.loss_names(plan.stage)),
            num_teachers=len(plan.stage.teachers),
            mean=dataset.mean,
            std=dataset.std,
            scale=section.scale,
            normalise=section.normalise,
            total=section.total,
            control=section.control,
            shared=section.shared,
            overrides=students.overrides,
        ),
        plan.seed,
        "coordinator",
    )


def costs(losses: Tensor, z_teachers: Mapping[str, Tensor], y: Tensor) -> Tensor:
    """The step's losses, [n, k, c], and the teachers' own cross-entropy against the label: [n, k·c + teachers]."""
    own = [cross_entropy(z[:, None], y) for z in z_teachers.values()]
    return torch.cat([losses.detach().flatten(1), *own], dim=1)

"""The coordinator, C-NET: g_φ → (α, β, γ), the weight of each loss per image and student (§3.3, Eq. 5)."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mcd_cli.models import COORDINATORS, build
from mcd_cli.models.students import promote_to_float32


class ScalarCoordinator(nn.Module):
    """Control (g): k·c learned numbers instead of a network; all images get the same loss weights."""

    def __init__(self, num_seen: int, num_outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(x.shape[0], -1)


class LossCoordinator(nn.Module):
    """A small network whose input is an image's losses instead of its pixels, [n, s] → [n, num_outputs].

    The pixels do not show whether a label or the teacher is wrong, but the losses, compared with the batch, do
    (Meta-Weight-Net, Shu et al. 2019, for a single loss). The input is log(1 + ℓ), normalised over the batch so that
    the common fall of the losses during training carries no signal.
    """

    HIDDEN = 64

    def __init__(self, num_seen: int, num_outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(num_seen, affine=False)
        self.hidden = nn.Linear(num_seen, self.HIDDEN)
        self.head = nn.Linear(self.HIDDEN, num_outputs)

    def forward(self, losses: Tensor) -> Tensor:
        hidden = torch.relu(self.hidden(self.norm(losses.clamp(min=0).log1p())))
        return self.head(hidden)  # type: ignore[no-any-return]


class PerStudent(nn.Module):
    """Control (d): one network per student, initialised like the network of a run with only that student."""

    def __init__(self, network: nn.Module, num_students: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(network) for _ in range(num_students))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], dim=1)


class Coordinator(nn.Module):
    """A small classifier with k·c outputs that are turned into loss weights; w = scale · sigmoid(head(x)).

    The head starts at zero, so every weight starts at scale/2; with `control="frozen"`, C-NET is random and never
    updated.

    arch: a network of the zoo, whose input is the images, or a name in COORDINATORS.
    normalise: "mean" divides by the batch mean of the total weight per student and multiplies by `total`, inside φ's
    graph, so that only relative weights are learned; "image" makes each image's weights sum to `total`, so that only
    the mixture of losses is learned and no image can outweigh another.
    control: removes what C-NET knows about images: "mean" replaces each weight by its batch mean, "shuffle" permutes
    the weights over the batch.
    shared: False gives each student its own network with c outputs.
    overrides: as in Students.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        arch: str,
        num_students: int,
        num_losses: int,
        *,
        num_teachers: int = 1,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        scale: float = 1.0,
        normalise: str = "none",
        total: float | None = None,
        control: str = "none",
        shared: bool = True,
        overrides: AbstractContextManager[object] | None = None,
    ) -> None:
        super().__init__()
        self.overrides = overrides or nullcontext()
        num_outputs = num_losses * (num_students if shared else 1)
        network: nn.Module
        if arch in COORDINATORS:
            network = COORDINATORS.load(arch)(num_students * num_losses + num_teachers, num_outputs)
        else:
            network = build(arch, num_outputs)
        if control != "frozen":
            for head in [m for m in network.modules() if isinstance(m, nn.Linear)][-1:]:  # learned numbers have none
                nn.init.zeros_(head.weight)
                nn.init.zeros_(head.bias)
        self.network = network if shared else PerStudent(network, num_students)
        self.sees_losses = isinstance(network, LossCoordinator)
        self.shape = (num_students, num_losses)
        self.scale = scale
        self.normalise = normalise
        ceiling = scale * num_losses
        self.total = total if total is not None else ceiling if normalise == "image" else ceiling / 2
        self.control = control
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor, losses: Tensor | None = None) -> Tensor:
        """C-NET's outputs p = sigmoid(head), [n, k, c] in (0, 1).

        x: images [n, 3, H, W] in [0, 1]; losses: the step's losses [n, k·c] and the teachers' label losses [n,
        teachers], concatenated and detached (only LossCoordinator needs them).
        """
        with self.overrides:
            head = self.network(losses if self.sees_losses else (x - self.mean) / self.std)
        return torch.sigmoid(promote_to_float32(head)).view(-1, *self.shape)

    def weigh(self, p: Tensor, permutation: Tensor | None = None) -> Tensor:
        """The loss weights w [n, k, c] from the outputs p [n, k, c] of the whole batch.

        permutation: this step's permutation [n], for control "shuffle".
        """
        w = self.scale * p
        if self.control == "mean":
            w = w.mean(dim=0, keepdim=True).expand_as(w)
        elif self.control == "shuffle":
            assert permutation is not None
            w = w[permutation]
        if self.normalise == "image":
            w = self.total * w / w.sum(dim=-1, keepdim=True)
        elif self.normalise == "mean":
            w = self.total * w / w.sum(dim=-1, keepdim=True).mean(dim=0, keepdim=True)
        return w

"""C-NET, g_φ → (α, β, γ): how much each loss of each image weighs for each student (§3.3, Eq. 5)."""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from mcd_cli.models import COORDINATORS, build
from mcd_cli.models.students import promote_to_float32


class ScalarCoordinator(nn.Module):
    """Control (g): k·c learned numbers and no network; every image gets the same ones."""

    def __init__(self, num_seen: int, num_outputs: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_outputs))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(x.shape[0], -1)


class LossCoordinator(nn.Module):
    """g_φ of what an image costs, not of what it shows: a small network over its losses, [n, s] → [n, num_outputs].

    An image cannot tell that its label is wrong or that the teacher errs on it; its losses beside the batch's can
    (Meta-Weight-Net, Shu et al. 2019, for one loss). log(1 + ℓ), normalised over the batch: a falling loss is no news.
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
    """Control (d): a network for each student, which begins like the one that it would have if it were alone."""

    def __init__(self, network: nn.Module, num_students: int) -> None:
        super().__init__()
        self.networks = nn.ModuleList(copy.deepcopy(network) for _ in range(num_students))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([network(x) for network in self.networks], dim=1)


class Coordinator(nn.Module):
    """A small classifier of the zoo whose head gives k·c outputs; w = scale · sigmoid(head(x)).

    The head starts at zero, so every weight starts at scale/2 (but for `control="frozen"`, a random C-NET that is
    never updated). `normalise="mean"` divides by the batch mean of the total weight per student and multiplies by
    `total`, inside φ's graph, so that only relative weights are learned; "image" makes each image's own weights sum
    to `total`, so that only its mixture of losses is learned: no image can outweigh the others.
    `control` takes C-NET's knowledge of images away: "mean" replaces each weight by its batch mean, "shuffle"
    permutes the weights over the batch.
    `shared=False` takes the students' sharing away: each has a network of its own, with c outputs.
    `overrides` as in Students. arch: a network of the zoo, which sees the images, or a name in COORDINATORS.
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

        x: images [n, 3, H, W] in [0, 1]; losses: the step's [n, k·c] and the teachers' own against the label, [n,
        teachers], side by side, detached (only LossCoordinator needs them).
        """
        with self.overrides:
            head = self.network(losses if self.sees_losses else (x - self.mean) / self.std)
        return torch.sigmoid(promote_to_float32(head)).view(-1, *self.shape)

    def weigh(self, p: Tensor, permutation: Tensor | None = None) -> Tensor:
        """The loss weights w of a whole batch's outputs p, both [n, k, c].

        permutation: the step's, [n], for control "shuffle".
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

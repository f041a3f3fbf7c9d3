"""Records the loss weights that C-NET gave each training image, averaged over a stage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mcd_cli.data.dataset import Dataset
from mcd_cli.engine.checkpoint import put_all
from mcd_cli.engine.meters import sums_dtype
from mcd_cli.ladder.metrics import ImageRecord, ImagesRecord, leading

NUM_EXTREMES = 8  # images with the largest and with the smallest weights
DIGITS = 5


class InstanceWeights:
    """By how much each image's weights exceed its batch's mean, summed over the image's steps; part of the state.

    Weights drift during training, and not every image is in every epoch (the last short batch is dropped). A plain
    average per image would therefore reflect when it was used; its difference from the batch does not. The sums stay
    on the device and are read only at the end of the stage. Rows are sample ids of the whole data set.
    """

    def __init__(self, num_images: int, num_students: int, num_losses: int, device: torch.device) -> None:
        self.excess = torch.zeros(num_images, num_students, num_losses, device=device)
        self.uses = torch.zeros(num_images, device=device)
        self.means = torch.zeros(num_students, num_losses, dtype=sums_dtype(device), device=device)
        self.steps = torch.zeros((), dtype=sums_dtype(device), device=device)

    @torch.no_grad()
    def add(self, ids: Tensor, w: Tensor) -> None:
        """Add a step. ids: sample ids of the whole batch [n], without duplicates; w: the loss weights [n, k, c]."""
        mean = w.mean(dim=0)
        self.excess[ids] += (w - mean).float()
        self.uses[ids] += 1
        self.means += mean
        self.steps += 1

    def state_dict(self) -> dict[str, Tensor]:
        return {"excess": self.excess, "uses": self.uses, "means": self.means, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        put_all(self.state_dict(), state)

    def summary(
        self, students: tuple[str, ...], loss_names: tuple[str, ...], dataset: Dataset
    ) -> dict[str, ImagesRecord]:
        """Per student, over the training images, from each image's weights averaged over the stage."""
        ids = self.uses.nonzero().flatten().cpu()
        excess = self.excess.cpu()[ids].double() / self.uses.cpu()[ids].double()[:, None, None]
        mean = (self.means / self.steps).cpu() + excess  # [n, k, c]
        labels, moved = dataset.labels[ids], dataset.mislabelled[ids]
        present = [c for c in range(dataset.num_classes) if (labels == c).any()]

        def named(values: Tensor) -> dict[str, float]:
            return {s: round(v, DIGITS) for s, v in zip(loss_names, values.tolist(), strict=True)}

        def images(beta: Tensor, positions: Tensor) -> tuple[ImageRecord, ...]:
            return tuple(
                ImageRecord(
                    image=int(ids[i]),
                    label=dataset.classes[int(labels[i])],
                    beta=round(beta[i].item(), DIGITS),
                    mislabelled=bool(moved[i]) if moved.any() else None,
                )
                for i in positions
            )

        summary = {}
        for student, w in zip(students, mean.unbind(dim=1), strict=True):
            class_means = {dataset.classes[c]: named(w[labels == c].mean(dim=0)) for c in present}
            beta = w[:, loss_names.index(leading(loss_names))]
            order = beta.argsort(stable=True)
            num_extremes = min(NUM_EXTREMES, len(order) // 2)
            parts = {"yes": w[moved], "no": w[~moved]} if moved.any() else {}
            summary[student] = ImagesRecord(
                spread=named(w.std(dim=0, correction=0)),
                by_class={s: {name: means[s] for name, means in class_means.items()} for s in loss_names},
                highest=images(beta, order.flip(0)[:num_extremes]),
                lowest=images(beta, order[:num_extremes]),
                mislabelled={part: named(rows.mean(dim=0)) for part, rows in parts.items()} or None,
            )
        return summary

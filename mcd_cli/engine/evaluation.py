"""Evaluation: eval mode, float32, un-augmented images."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from mcd_cli.data.loader import Loader
from mcd_cli.ops.convolution import UNSTRIDED
from mcd_cli.ops.overrides import Overrides


def each_logits(
    model: nn.Module,
    loader: Loader,
    split: Tensor,
    keep: Callable[[Tensor], Tensor],
    run: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """keep(logits) of every image of the split, in its order; the model's mode is put back.

    run: what computes the model's logits instead of a plain call (a graph of it).
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), Overrides(UNSTRIDED) if loader.device.type == "cpu" else nullcontext():
        kept = [keep((run or model)(batch.images)) for batch in loader.in_order(split)]
        everyones = loader.processes.gather(torch.cat(kept), len(split))
    model.train(was_training)
    return everyones.cpu()


def predictions(
    model: nn.Module, loader: Loader, split: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The predicted class of every image of the split: [N] of a single network, [N, k] of Students."""
    return each_logits(model, loader, split, lambda z: z.argmax(dim=-1), run)


def num_correct(predicted: Tensor, loader: Loader, split: Tensor) -> Tensor:
    """How many predictions are right: a scalar, or one number per student [k]."""
    labels = loader.dataset.labels[split]
    return (predicted == labels.view(-1, *[1] * (predicted.ndim - 1))).sum(dim=0)

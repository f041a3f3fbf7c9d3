"""Evaluates models in eval mode and float32, on images without augmentation."""

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
    """keep(logits) for every image of the split, in order; the model's train or eval mode is restored.

    run: called instead of the model to compute the logits (for example its CUDA graph).
    """
    was_training = model.training
    model.eval()
    with torch.no_grad(), Overrides(UNSTRIDED) if loader.device.type == "cpu" else nullcontext():
        results = [keep((run or model)(batch.images)) for batch in loader.in_order(split)]
        gathered = loader.processes.gather(torch.cat(results), len(split))
    model.train(was_training)
    return gathered.cpu()


def predictions(
    model: nn.Module, loader: Loader, split: Tensor, run: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """The predicted class of every image of the split: [N] for a single network, [N, k] for Students."""
    return each_logits(model, loader, split, lambda z: z.argmax(dim=-1), run)


def num_correct(predicted: Tensor, loader: Loader, split: Tensor) -> Tensor:
    """The number of correct predictions: a scalar, or one number per student [k]."""
    labels = loader.dataset.labels[split]
    return (predicted == labels.view(-1, *[1] * (predicted.ndim - 1))).sum(dim=0)

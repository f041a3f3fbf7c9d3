"""Checks before training: every network takes the images, and the teacher is better than chance on val."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import bdtr
from torch import Tensor, nn

from mcd_cli.data.loader import Loader, plain
from mcd_cli.engine.evaluation import num_correct, predictions
from mcd_cli.engine.events import InfoMessage, Listener, WarningMessage
from mcd_cli.engine.teacher import Teacher
from mcd_cli.errors import GateRefused, UserError, reason_of
from mcd_cli.models.normalized import Normalized
from mcd_cli.models.students import freeze
from mcd_cli.norms import NORMS, RGB
from mcd_cli.ops.convolution import UNSTRIDED
from mcd_cli.ops.overrides import Overrides

NUM_TRIED = 512  # val images for trying other normalisations and channel orders
GAIN = 0.05  # gain in accuracy above which another normalisation is suggested
CONFIDENCE = 0.999


class Swapped(nn.Module):
    """The same network with BGR input."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.flip(1))
        return logits


def check_network(what: str, network: nn.Module, loader: Loader) -> None:
    """Raises UserError if the network cannot take the images or does not return one logit per class."""
    images, dataset = plain(loader.pixels.take(loader.dataset.train[:2])), loader.dataset
    try:
        with torch.no_grad(), Overrides(UNSTRIDED):
            shape = tuple(network.to(images.device).eval()(images).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, dataset.input_shape))
        raise UserError(f"{what} cannot take {size} images ({reason_of(error)}); try another --image-size") from None
    if shape != (len(images), dataset.num_classes):
        raise UserError(f"{what} gives outputs of shape {shape}, not one logit for each class")


def bar(num_images: int, num_classes: int) -> int:
    """The number of correct predictions that a teacher must exceed to count as better than chance.

    A random guesser that is right with probability 2/C (3/4 for two classes) exceeds it once in a thousand times.
    """
    p = min(2 / num_classes, (1 + 1 / num_classes) / 2)
    counts = np.arange(num_images + 1)
    return int(np.argmax(bdtr(counts, num_images, p) >= CONFIDENCE))


def check_teacher(teacher: Teacher, loader: Loader, force: bool, emit: Listener) -> float:
    """The teacher's accuracy on val. Raises GateRefused if it is near chance; with `force` it only warns."""
    val = loader.dataset.val
    predicted = predictions(teacher.network, loader, val)
    num_right = int(num_correct(predicted, loader, val))
    accuracy = num_right / len(val)
    emit(InfoMessage(f"teacher {teacher.arch}: {accuracy:.1%} on val ({len(val):,} images)"))
    if not teacher.was_given:
        return accuracy
    sample = val[torch.linspace(0, len(val) - 1, min(NUM_TRIED, len(val))).long()]
    current = int(num_correct(predictions(teacher.network, loader, sample), loader, sample)) / len(sample)
    near_chance = num_right <= bar(len(val), loader.dataset.num_classes)
    best, reading = _best_reading(teacher, loader, sample, with_swaps=near_chance)
    if not near_chance:
        if best > current + GAIN:
            emit(
                WarningMessage(
                    f"with {reading}, the teacher reaches {best:.1%} instead of {current:.1%} "
                    f"on {len(sample)} val images"
                )
            )
        return accuracy
    if best > current + GAIN and best * len(sample) > bar(len(sample), loader.dataset.num_classes):
        cause = f"it reaches {best:.1%} on {len(sample)} val images with {reading}"
    elif _other_class_order(predicted, loader.dataset.labels[val], loader.dataset.num_classes):
        cause = "its classes seem to be in another order than the data set's"
    else:
        cause = "no other normalisation, channel order or class order helps: is it a teacher for this data set?"
    line = f"the teacher's accuracy on val is {accuracy:.1%}, near chance; {cause}"
    if not force:
        raise GateRefused(f"{line} (use --force to train anyway)")
    emit(WarningMessage(line))
    return accuracy


def _best_reading(teacher: Teacher, loader: Loader, sample: Tensor, with_swaps: bool) -> tuple[float, str]:
    """The best accuracy with other normalisations (with_swaps: also BGR and 0–255 input), and the option for it."""
    norms: dict[str, tuple[RGB, RGB]] = dict(NORMS)
    if with_swaps:
        norms["0,0,0/.00392157,.00392157,.00392157 (input 0–255)"] = ((0.0,) * 3, (1 / 255,) * 3)
    readings: dict[str, nn.Module] = {}
    network = teacher.network.network
    for name, (mean, std) in norms.items():
        model: Normalized = freeze(network, mean, std).to(loader.device)
        readings[f"--teacher-norm {name}"] = model
        if with_swaps:
            readings[f"--teacher-norm {name} and BGR input (its first convolution's channels reversed)"] = Swapped(
                model
            )
    scores = {
        how: int(num_correct(predictions(model, loader, sample), loader, sample)) / len(sample)
        for how, model in readings.items()
    }
    how = max(scores, key=lambda key: scores[key])
    return scores[how], how


def _other_class_order(predicted: Tensor, labels: Tensor, num_classes: int) -> bool:
    """Whether a permutation of the classes, found on one half of val, gives good accuracy on the other half."""
    from scipy.optimize import linear_sum_assignment

    is_even = torch.arange(len(labels)) % 2 == 0
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    confusion.index_put_((predicted[is_even], labels[is_even]), torch.tensor(1), accumulate=True)
    _, permutation = linear_sum_assignment(confusion.numpy(), maximize=True)
    right = torch.from_numpy(permutation)[predicted[~is_even]] == labels[~is_even]
    return int(right.sum()) > bar(len(right), num_classes)

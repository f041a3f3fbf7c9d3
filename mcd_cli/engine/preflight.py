"""Before training: every network takes the images, and the teacher, measured on V, beats chance."""

from __future__ import annotations

import numpy as np
import torch
from scipy.special import bdtr
from torch import Tensor, nn

from mcd_cli.data.loader import Loader, plain
from mcd_cli.engine.evaluation import num_correct, predictions
from mcd_cli.engine.events import InfoMessage, Listener, WarningMessage
from mcd_cli.engine.teacher import Teacher
from mcd_cli.errors import GateRefused, UserError
from mcd_cli.models.normalized import Normalized
from mcd_cli.models.students import freeze
from mcd_cli.norms import NORMS, RGB
from mcd_cli.ops.convolution import UNSTRIDED
from mcd_cli.ops.overrides import Overrides

NUM_TRIED = 512  # images of V on which other readings of the file are tried
GAIN = 0.05  # another normalisation is mentioned from this gain on
CONFIDENCE = 0.999


class Swapped(nn.Module):
    """The same network fed with BGR."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x.flip(1))
        return logits


def check_network(what: str, network: nn.Module, loader: Loader) -> None:
    """Raises UserError where the network cannot take the images, or gives no logit for each class."""
    images, dataset = plain(loader.pixels.take(loader.dataset.train[:2])), loader.dataset
    try:
        with torch.no_grad(), Overrides(UNSTRIDED):
            shape = tuple(network.to(images.device).eval()(images).shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, dataset.input_shape))
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"{what} cannot take {size} images ({first}); try another --image-size") from None
    if shape != (len(images), dataset.num_classes):
        raise UserError(f"{what} gives outputs of shape {shape}, not one logit for each class")


def bar(num_images: int, num_classes: int) -> int:
    """Right answers out of num_images that a guesser right with probability 2/C exceeds once in a thousand.

    (3/4 instead of 2/C = 1 for two classes.)
    """
    p = min(2 / num_classes, (1 + 1 / num_classes) / 2)
    counts = np.arange(num_images + 1)
    return int(np.argmax(bdtr(counts, num_images, p) >= CONFIDENCE))


def check_teacher(teacher: Teacher, loader: Loader, force: bool, emit: Listener) -> float:
    """The teacher's accuracy on V; raises GateRefused when it is near chance (a warning with force)."""
    val = loader.dataset.val
    predicted = predictions(teacher.network, loader, val)
    right = int(num_correct(predicted, loader, val))
    accuracy = right / len(val)
    emit(InfoMessage(f"teacher {teacher.arch}: {accuracy:.1%} on V ({len(val):,} images)"))
    if not teacher.was_given:
        return accuracy
    sample = val[torch.linspace(0, len(val) - 1, min(NUM_TRIED, len(val))).long()]
    now = int(num_correct(predictions(teacher.network, loader, sample), loader, sample)) / len(sample)
    near_chance = right <= bar(len(val), loader.dataset.num_classes)
    best, reading = _best_reading(teacher, loader, sample, with_swaps=near_chance)
    if not near_chance:
        if best > now + GAIN:
            emit(
                WarningMessage(
                    f"the teacher reaches {best:.1%} instead of {now:.1%} ({len(sample)} images of V) with {reading}"
                )
            )
        return accuracy
    if best > now + GAIN and best * len(sample) > bar(len(sample), loader.dataset.num_classes):
        cause = f"it reaches {best:.1%} ({len(sample)} images) with {reading}"
    elif _other_class_order(predicted, loader.dataset.labels[val], loader.dataset.num_classes):
        cause = "its classes seem to stand in another order than the data set's"
    else:
        cause = "no other normalisation, channel order or class order helps: is it a teacher for this data set?"
    line = f"the teacher is right on {accuracy:.1%} of V, near chance; {cause}"
    if not force:
        raise GateRefused(f"{line} (--force goes on all the same)")
    emit(WarningMessage(line))
    return accuracy


def _best_reading(teacher: Teacher, loader: Loader, sample: Tensor, with_swaps: bool) -> tuple[float, str]:
    """The best accuracy among other normalisations (and BGR, and 0–255 input), and how to ask for it."""
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
    """Whether renaming classes, learned on one half of V, makes the other half right."""
    from scipy.optimize import linear_sum_assignment

    first = torch.arange(len(labels)) % 2 == 0
    confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)
    confusion.index_put_((predicted[first], labels[first]), torch.tensor(1), accumulate=True)
    _, renamed = linear_sum_assignment(confusion.numpy(), maximize=True)
    right = torch.from_numpy(renamed)[predicted[~first]] == labels[~first]
    return int(right.sum()) > bar(len(right), num_classes)

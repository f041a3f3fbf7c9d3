"""The results of a run's stages: each student's weights at its best accuracy on val and after the last epoch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mcd_cli.ladder.metrics import WARM_START
from mcd_cli.methods.base import TEACHER

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """The result of a stage. best: each student's weights at its best accuracy on val; last: after the last epoch."""

    best: Mapping[str, Weights]
    last: Mapping[str, Weights]

    def tensors(self) -> dict[str, Tensor]:
        """All weights as one flat mapping, named `best/STUDENT:KEY` and `last/STUDENT:KEY`."""
        return {
            f"{kind}/{student}:{key}": value
            for kind, students in (("best", self.best), ("last", self.last))
            for student, weights in students.items()
            for key, value in weights.items()
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Result:
        """The inverse of `tensors`."""
        parts: dict[str, dict[str, Weights]] = {"best": {}, "last": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            student, _, key = rest.partition(":")
            parts[kind].setdefault(student, {})[key] = value
        return cls(parts["best"], parts["last"])


class Results(dict[str, Result]):
    """Finished stages by name."""

    def warm_started(self) -> Mapping[str, Weights]:
        """Each student's weights after the warm start; empty without a warm start."""
        return self[WARM_START].best if WARM_START in self else {}

    def distilled(self) -> Result:
        """Each student's weights after the method's own stages."""
        stages = [result for name, result in self.items() if name not in (TEACHER, WARM_START)]
        return Result(
            {name: weights for result in stages for name, weights in result.best.items()},
            {name: weights for result in stages for name, weights in result.last.items()},
        )

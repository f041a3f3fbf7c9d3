"""What the stages of a run leave behind: each student's weights, at its best on V and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from mcd_cli.ladder.metrics import WARM_START
from mcd_cli.methods.base import TEACHER

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Result:
    """A finished stage: each student's weights at its best on V and at the end."""

    best: Mapping[str, Weights]
    last: Mapping[str, Weights]

    def tensors(self) -> dict[str, Tensor]:
        return {
            f"{kind}/{student}:{key}": value
            for kind, of_student in (("best", self.best), ("last", self.last))
            for student, weights in of_student.items()
            for key, value in weights.items()
        }

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Result:
        parts: dict[str, dict[str, Weights]] = {"best": {}, "last": {}}
        for name, value in tensors.items():
            kind, _, rest = name.partition("/")
            student, _, key = rest.partition(":")
            parts[kind].setdefault(student, {})[key] = value
        return cls(parts["best"], parts["last"])


class Results(dict[str, Result]):
    """Finished stages by name."""

    def warm_started(self) -> Mapping[str, Weights]:
        """Each student's weights after the warm start; empty without one."""
        return self[WARM_START].best if WARM_START in self else {}

    def distilled(self) -> Result:
        """Each student's weights from the method's own stages."""
        own = [result for name, result in self.items() if name not in (TEACHER, WARM_START)]
        return Result(
            {name: weights for result in own for name, weights in result.best.items()},
            {name: weights for result in own for name, weights in result.last.items()},
        )

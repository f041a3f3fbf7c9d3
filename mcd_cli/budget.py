"""Choosing a student under a budget: every limit is hard, and the nearest miss is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mcd_cli import quantities
from mcd_cli.errors import NothingFits, UserError

if TYPE_CHECKING:
    from mcd_cli.entries import StudentEntry

Quantity = str | int | float


@dataclass(frozen=True)
class _Cost:
    """One thing that a budget limits: how it is read, how it is shown, where a student has it."""

    parse: Callable[[Quantity], float]
    show: Callable[[float, int | None], str]
    of: Callable[[StudentEntry], float | None]
    noun: str = ""


_COSTS = {
    "max_macs": _Cost(quantities.count, quantities.show_count, lambda student: student.macs),
    "max_params": _Cost(quantities.count, quantities.show_count, lambda student: student.params, " parameters"),
    "max_size": _Cost(quantities.size, quantities.show_size, lambda student: student.bytes, " of weights"),
    "max_latency": _Cost(quantities.duration, quantities.show_ms, lambda student: student.latency_ms),
}


@dataclass(frozen=True)
class Budget:
    """Limits in base units: MACs, parameters, bytes of the weights file, milliseconds, a fraction on V."""

    max_macs: float | None = None
    max_params: float | None = None
    max_size: float | None = None
    max_latency: float | None = None
    min_accuracy: float | None = None

    @classmethod
    def parse(cls, **limits: Quantity | None) -> Budget:
        """Limits as people write them ("16M", "400KB", "2ms", "72%"), or numbers. Raises UserError."""
        parsed: dict[str, float] = {}
        for name, written in limits.items():
            if written is None:
                continue
            try:
                cost = _COSTS.get(name)
                parsed[name] = cost.parse(written) if cost else quantities.accuracy(written)
            except UserError as error:
                raise UserError(f"{_option(name)}: {error}") from None
            if cost and parsed[name] == 0:
                raise UserError(f"{_option(name)} {written}: every student costs something; allow more than 0")
        return cls(**parsed)

    def limits(self) -> dict[str, float]:
        """What is limited, by name."""
        named = {name: getattr(self, name) for name in (*_COSTS, "min_accuracy")}
        return {name: limit for name, limit in named.items() if limit is not None}

    def __str__(self) -> str:
        return " ".join(
            f"{_option(name)} {_COSTS[name].show(limit, None) if name in _COSTS else _percent(limit)}"
            for name, limit in self.limits().items()
        )


@dataclass(frozen=True)
class Miss:
    """One limit that a student breaks: "needs 16.2M: 1.1 % over"."""

    limit: str
    need: float
    budget: float

    @property
    def excess(self) -> float:
        """How far off, as a fraction of the budget; above 0."""
        return abs(self.need - self.budget) / self.budget

    def __str__(self) -> str:
        cost = _COSTS.get(self.limit)
        if cost is None:
            points = _two_digits(100 * (self.budget - self.need))
            return f"reaches {_percent(self.need)} on V: {points} points short"
        need = cost.show(self.need, 3)
        if need == cost.show(self.budget, 3):
            need = f"{self.need:,}"  # too near for three digits
        if self.excess > 10:
            return f"needs {need}{cost.noun}: {self.need / self.budget:,.0f} times the budget"
        return f"needs {need}{cost.noun}: {_two_digits(100 * self.excess)} % over"


@dataclass(frozen=True)
class Candidate:
    """A student against the budget; it fits where it misses nothing."""

    student: StudentEntry
    misses: tuple[Miss, ...]
    on_front: bool  # no other student is both cheaper (MACs) and at least as accurate on V

    @property
    def fits(self) -> bool:
        return not self.misses

    @property
    def excess(self) -> float:
        """How far off the limit is that it breaks worst; 0 where it fits."""
        return max((miss.excess for miss in self.misses), default=0.0)

    def __str__(self) -> str:
        return f"{self.student.name} {' and '.join(map(str, self.misses)) or 'fits'}"


@dataclass(frozen=True)
class Choice:
    """The chosen student, if any, and why: all students in the ladder's order, and the nearest miss."""

    budget: Budget
    candidates: tuple[Candidate, ...]
    chosen: StudentEntry | None
    nearest: Candidate | None

    def demand(self) -> StudentEntry:
        """The chosen student; raises NothingFits, which names what is missing."""
        if self.chosen is not None:
            return self.chosen
        assert self.nearest is not None, "a ladder has students, and where none fits each one misses"
        smallest = min(self.candidates, key=lambda candidate: candidate.student.macs)
        if smallest is self.nearest:
            raise NothingFits(f"no student fits {self.budget}; the smallest comes nearest: {smallest}")
        raise NothingFits(f"no student fits {self.budget}; nearest miss: {self.nearest}; smallest: {smallest}")


def choose(students: Sequence[StudentEntry], budget: Budget) -> Choice:
    """The most accurate student on V that fits every limit; ties go to fewer MACs.

    Raises UserError where a limit is on something that has not been measured.
    """
    candidates = tuple(
        Candidate(student, _misses(student, budget), _on_front(student, students)) for student in students
    )
    fitting = [candidate.student for candidate in candidates if candidate.fits]
    missing = [candidate for candidate in candidates if not candidate.fits]
    return Choice(
        budget,
        candidates,
        chosen=max(fitting, key=lambda student: (student.accuracy.val, -student.macs), default=None),
        nearest=min(missing, key=lambda candidate: candidate.excess, default=None),
    )


def _misses(student: StudentEntry, budget: Budget) -> tuple[Miss, ...]:
    misses = []
    for name, limit in budget.limits().items():
        if name == "min_accuracy":
            if student.accuracy.val < limit:
                misses.append(Miss(name, student.accuracy.val, limit))
            continue
        need = _COSTS[name].of(student)
        if need is None:
            raise UserError(
                f"{_option(name)}: the latency of {student.name} has not been measured yet; limit --max-macs instead"
            )
        if need > limit:
            misses.append(Miss(name, need, limit))
    return tuple(misses)


def _on_front(student: StudentEntry, students: Sequence[StudentEntry]) -> bool:
    """Pareto-optimal in (MACs, accuracy on V)."""
    mine = (student.macs, -student.accuracy.val)
    others = [(other.macs, -other.accuracy.val) for other in students]
    return not any(o != mine and o[0] <= mine[0] and o[1] <= mine[1] for o in others)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _two_digits(percent: float) -> str:
    """Two digits of something above 0, which is never shown as 0."""
    if percent < 0.01:
        return "less than 0.01"
    return f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"

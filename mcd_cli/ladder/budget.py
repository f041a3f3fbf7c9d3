"""Choosing a student under a budget: every limit is hard, and the nearest miss is named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mcd_cli import quantities
from mcd_cli.errors import NothingFits, UserError, unknown
from mcd_cli.ladder.variants import Variant

Quantity = str | int | float
PERCENTILES = ("p50", "p90", "p99")


@dataclass(frozen=True)
class _Cost:
    """One thing that a budget limits: how it is read, how it is shown, where a student's variant has it."""

    parse: Callable[[Quantity], float]
    show: Callable[[float, int | None], str]
    of: Callable[[Variant], float | None]


_COSTS = {
    "max_macs": _Cost(quantities.count, quantities.show_count, lambda variant: variant.student.macs),
    "max_params": _Cost(quantities.count, quantities.show_count, lambda variant: variant.student.params),
    "max_size": _Cost(quantities.size, quantities.show_size, lambda variant: variant.bytes),
    "max_latency": _Cost(quantities.duration, quantities.show_ms, lambda variant: variant.latency_ms),
}


@dataclass(frozen=True)
class Budget:
    """Limits in base units: MACs, parameters, bytes, milliseconds, a fraction on V.

    Bytes are those of the ONNX file where a student is exported, else of its weights; the latency is that
    percentile of onnxruntime's calls with one image.
    """

    max_macs: float | None = None
    max_params: float | None = None
    max_size: float | None = None
    max_latency: float | None = None
    min_accuracy: float | None = None
    percentile: str = "p50"

    @classmethod
    def parse(cls, *, percentile: str | None = None, **limits: Quantity | None) -> Budget:
        """Limits as people write them ("16M", "400KB", "2ms", "72%"), or numbers. Raises UserError."""
        if percentile not in (None, *PERCENTILES):
            raise unknown("percentile", str(percentile), PERCENTILES)
        if percentile is not None and limits.get("max_latency") is None:
            raise UserError(f"--percentile {percentile} is of a latency; add --max-latency, for example 2ms")
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
        return cls(**parsed, percentile=percentile or "p50")

    def limits(self) -> dict[str, float]:
        """What is limited, by name."""
        named = {name: getattr(self, name) for name in (*_COSTS, "min_accuracy")}
        return {name: limit for name, limit in named.items() if limit is not None}

    def __str__(self) -> str:
        written = [
            f"{_option(name)} {_COSTS[name].show(limit, None) if name in _COSTS else quantities.show_percent(limit)}"
            for name, limit in self.limits().items()
        ]
        return " ".join(written + [f"--percentile {self.percentile}"] * (self.percentile != "p50"))


@dataclass(frozen=True)
class Miss:
    """One limit that a student breaks: "needs 16.2M: 1.1 % over"."""

    limit: str
    need: float
    budget: float
    noun: str = ""

    @property
    def excess(self) -> float:
        """How far off, as a fraction of the budget; above 0."""
        return abs(self.need - self.budget) / self.budget

    def __str__(self) -> str:
        cost = _COSTS.get(self.limit)
        if cost is None:
            points = _two_digits(100 * (self.budget - self.need))
            return f"reaches {quantities.show_percent(self.need)} on V: {points} points short"
        need = cost.show(self.need, 3)
        if need == cost.show(self.budget, 3):
            need = f"{self.need:,}"  # too near for three digits
        if self.excess > 10:
            return f"needs {need}{self.noun}: {self.need / self.budget:,.0f} times the budget"
        return f"needs {need}{self.noun}: {_two_digits(100 * self.excess)} % over"


@dataclass(frozen=True)
class Candidate:
    """A student against the budget; it fits where it misses nothing."""

    variant: Variant
    misses: tuple[Miss, ...]
    on_front: bool  # nothing else is as cheap (MACs and bytes) and as accurate on V, and better in one of them

    @property
    def fits(self) -> bool:
        return not self.misses

    @property
    def excess(self) -> float:
        """How far off the limit is that it breaks worst; 0 where it fits."""
        return max((miss.excess for miss in self.misses), default=0.0)

    def __str__(self) -> str:
        return f"{self.variant.name} {' and '.join(map(str, self.misses)) or 'fits'}"


@dataclass(frozen=True)
class Choice:
    """What was chosen, if anything, and why: all variants in the ladder's order, and the nearest miss."""

    budget: Budget
    candidates: tuple[Candidate, ...]
    chosen: Variant | None
    nearest: Candidate | None

    def demand(self) -> Variant:
        """The chosen student; raises NothingFits, which names what is missing."""
        if self.chosen is not None:
            return self.chosen
        assert self.nearest is not None, "a ladder has students, and where none fits each one misses"
        smallest = min(self.candidates, key=lambda candidate: _cost(candidate.variant, self.budget))
        if smallest is self.nearest:
            raise NothingFits(f"no student fits {self.budget}; the smallest comes nearest: {smallest}")
        raise NothingFits(f"no student fits {self.budget}; nearest miss: {self.nearest}; smallest: {smallest}")


def choose(variants: Sequence[Variant], budget: Budget) -> Choice:
    """The most accurate on V that fits every limit; ties go to fewer MACs, then less of a limited time, then bytes.

    Raises UserError where a limit is on something that has not been measured.
    """
    candidates = tuple(
        Candidate(variant, _misses(variant, budget), _on_front(variant, variants)) for variant in variants
    )
    fitting = [candidate.variant for candidate in candidates if candidate.fits]
    missing = [candidate for candidate in candidates if not candidate.fits]
    return Choice(
        budget,
        candidates,
        chosen=min(fitting, key=lambda variant: (-variant.val, *_cost(variant, budget)), default=None),
        nearest=min(missing, key=lambda candidate: (candidate.excess, *_cost(candidate.variant, budget)), default=None),
    )


def _misses(variant: Variant, budget: Budget) -> tuple[Miss, ...]:
    nouns = {
        "max_params": " parameters",
        "max_size": f" of {variant.measured_by}",
        "max_latency": f" ({budget.percentile})",
    }
    misses = []
    for name, limit in budget.limits().items():
        if name == "min_accuracy":
            if variant.val < limit:
                misses.append(Miss(name, variant.val, limit))
            continue
        need = _COSTS[name].of(variant)
        if need is None:
            raise UserError(
                f"{_option(name)}: the latency of {variant.name} has not been measured; `mcd profile` does it"
            )
        if need > limit:
            misses.append(Miss(name, need, limit, nouns.get(name, "")))
    return tuple(misses)


def _cost(variant: Variant, budget: Budget) -> tuple[float, ...]:
    timed = budget.max_latency is not None and variant.latency_ms is not None
    return variant.student.macs, (variant.latency_ms or 0.0) * timed, variant.bytes


def _on_front(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Pareto-optimal in MACs, bytes, latency (where every variant has one) and accuracy on V."""
    timed = all(other.latency_ms is not None for other in variants)

    def of(variant: Variant) -> tuple[float, ...]:
        return variant.student.macs, variant.bytes, (variant.latency_ms or 0.0) * timed, -variant.val

    mine, others = of(variant), [of(other) for other in variants]
    return not any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in others)


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _two_digits(percent: float) -> str:
    """Two digits of something above 0, which is never shown as 0."""
    if percent < 0.01:
        return "less than 0.01"
    return f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"

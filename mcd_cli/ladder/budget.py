"""Choose a student under a budget. Every limit is hard; if nothing fits, the nearest miss is named."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from mcd_cli import quantities
from mcd_cli.errors import NothingFits, UserError, unknown
from mcd_cli.ladder.variants import Variant

Quantity = str | int | float
PERCENTILES = ("p50", "p90", "p99")


class Limits(TypedDict, total=False):
    """A budget as people write it: "16M", "400KB", "2ms", "72%", or numbers in base units. None: no limit."""

    max_macs: Quantity | None
    max_params: Quantity | None
    max_size: Quantity | None
    max_latency: Quantity | None
    min_accuracy: Quantity | None
    percentile: str | None


@dataclass(frozen=True)
class _Measure:
    """A quantity that a budget limits: how to read it, how to show it, and its value for a variant."""

    parse: Callable[[Quantity], float]
    show: Callable[[float, int | None], str]
    of: Callable[[Variant], float | None]


_MEASURES = {
    "max_macs": _Measure(quantities.count, quantities.show_count, lambda variant: variant.student.macs),
    "max_params": _Measure(quantities.count, quantities.show_count, lambda variant: variant.student.params),
    "max_size": _Measure(quantities.size, quantities.show_size, lambda variant: variant.bytes),
    "max_latency": _Measure(quantities.duration, quantities.show_ms, lambda variant: variant.latency_ms),
    "min_accuracy": _Measure(
        quantities.accuracy, lambda share, _: quantities.show_percent(share), lambda variant: variant.val
    ),
}


@dataclass(frozen=True)
class Budget:
    """Limits by name, in base units: MACs, parameters, bytes, milliseconds, a fraction of val.

    Bytes are those of the ONNX file if the student is exported, else of its weights; the latency is the given
    percentile over calls of onnxruntime with one image.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    percentile: str = PERCENTILES[0]

    @classmethod
    def parse(cls, *, percentile: str | None = None, **limits: Quantity | None) -> Budget:
        """Read `Limits`. Raises UserError for an unknown limit and for a value that is not a quantity."""
        if percentile not in (None, *PERCENTILES):
            raise unknown("percentile", str(percentile), PERCENTILES)
        if percentile is not None and limits.get("max_latency") is None:
            raise UserError(f"--percentile {percentile} needs a limit; add --max-latency, for example 2ms")
        parsed: dict[str, float] = {}
        for name, written in limits.items():
            if name not in _MEASURES:
                raise unknown("limit", name, _MEASURES)
            if written is None:
                continue
            try:
                parsed[name] = _MEASURES[name].parse(written)
            except UserError as error:
                raise UserError(f"{_option(name)}: {error}") from None
            if parsed[name] == 0 and not _is_minimum(name):
                raise UserError(f"{_option(name)} {written}: every student costs something; allow more than 0")
        return cls({name: parsed[name] for name in _MEASURES if name in parsed}, percentile or PERCENTILES[0])

    def __str__(self) -> str:
        written = [f"{_option(name)} {_MEASURES[name].show(limit, None)}" for name, limit in self.limits.items()]
        return " ".join(written + [f"--percentile {self.percentile}"] * (self.percentile != PERCENTILES[0]))


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
        if _is_minimum(self.limit):
            points = _two_digits(100 * (self.budget - self.need))
            return f"reaches {quantities.show_percent(self.need)} on val: {points} points short"
        show = _MEASURES[self.limit].show
        need = show(self.need, 3)
        if need == show(self.budget, 3):
            need = f"{self.need:,}"  # too close for three digits
        if self.excess > 10:
            return f"needs {need}{self.noun}: {self.need / self.budget:,.0f} times the budget"
        return f"needs {need}{self.noun}: {_two_digits(100 * self.excess)} % over"


@dataclass(frozen=True)
class Candidate:
    """A student, and the limits that it misses; it fits if there are none."""

    variant: Variant
    misses: tuple[Miss, ...]
    on_front: bool  # nothing else is as cheap (MACs and bytes) and as accurate on val, and better in one of them

    @property
    def fits(self) -> bool:
        return not self.misses

    @property
    def excess(self) -> float:
        """The excess of its worst miss; 0 if it fits."""
        return max((miss.excess for miss in self.misses), default=0.0)

    def __str__(self) -> str:
        return f"{self.variant.name} {' and '.join(map(str, self.misses)) or 'fits'}"


@dataclass(frozen=True)
class Choice:
    """The chosen variant, if any, and the reasons: all variants in the order of the ladder, and the nearest miss."""

    budget: Budget
    candidates: tuple[Candidate, ...]
    chosen: Variant | None
    nearest: Candidate | None

    def demand(self) -> Variant:
        """The chosen variant; raises NothingFits, which names the nearest miss."""
        if self.chosen is not None:
            return self.chosen
        assert self.nearest is not None, "a ladder has students, and those that do not fit miss a limit"
        smallest = min(self.candidates, key=lambda candidate: _cost(candidate.variant, self.budget))
        if smallest is self.nearest:
            raise NothingFits(f"no student fits {self.budget}; the smallest comes nearest: {smallest}")
        raise NothingFits(f"no student fits {self.budget}; nearest miss: {self.nearest}; smallest: {smallest}")


def choose(variants: Sequence[Variant], budget: Budget) -> Choice:
    """The variant with the highest accuracy on val that fits every limit.

    Of equals, the one with fewer MACs, then the lower latency if that is limited, then fewer bytes. Raises UserError
    for a limit on a latency that has not been measured.
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
    for name, limit in budget.limits.items():
        need = _MEASURES[name].of(variant)
        if need is None:
            raise UserError(
                f"{_option(name)}: the latency of {variant.name} has not been measured; run mcd profile --latency"
            )
        if need < limit if _is_minimum(name) else need > limit:
            misses.append(Miss(name, need, limit, nouns.get(name, "")))
    return tuple(misses)


def _cost(variant: Variant, budget: Budget) -> tuple[float, ...]:
    timed = "max_latency" in budget.limits and variant.latency_ms is not None
    return variant.student.macs, (variant.latency_ms or 0.0) * timed, variant.bytes


def _on_front(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Pareto-optimal in MACs, bytes, latency (if every variant has one) and accuracy on val."""
    timed = all(other.latency_ms is not None for other in variants)

    def of(variant: Variant) -> tuple[float, ...]:
        return variant.student.macs, variant.bytes, (variant.latency_ms or 0.0) * timed, -variant.val

    mine, others = of(variant), [of(other) for other in variants]
    return not any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in others)


def _is_minimum(name: str) -> bool:
    return name.startswith("min_")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _two_digits(percent: float) -> str:
    """Two digits; a value above 0 is never shown as 0."""
    if percent < 0.01:
        return "less than 0.01"
    return f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"

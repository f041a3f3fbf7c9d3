"""Choose a student under a budget. Every limit is hard; if nothing fits, the nearest miss is named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, TypeVar

from mcd_cli import quantities
from mcd_cli.errors import NothingFits, UserError, unknown
from mcd_cli.ladder.paired import Gap
from mcd_cli.ladder.variants import INT8, Variant

T = TypeVar("T")
Quantity = str | int | float
PERCENTILES = ("p50", "p90", "p99")
COSTS = ("macs", "params", "size", "latency")
MUCH_SMALLER = 0.75  # of float32's bytes: an int8 file that is larger wins no tie, unless it is known to be quicker
CHANCE = (1, 2)  # standard errors; a difference of at most 2 is called chance


class Limits(TypedDict, total=False):
    """A budget as people write it: "16M", "400KB", "2ms", "72%", "1se", or numbers in base units. None: no limit."""

    max_macs: Quantity | None
    max_params: Quantity | None
    max_size: Quantity | None
    max_latency: Quantity | None
    min_accuracy: Quantity | None
    within: str | None
    by: str | None
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
    percentile over calls of onnxruntime with one image. within: how many standard errors a student may be behind the
    most accurate one; by: which cost makes a student the cheapest.
    """

    limits: Mapping[str, float] = field(default_factory=dict)
    percentile: str = PERCENTILES[0]
    within: float | None = None
    by: str = COSTS[0]

    @classmethod
    def parse(
        cls,
        *,
        percentile: str | None = None,
        within: str | None = None,
        by: str | None = None,
        **limits: Quantity | None,
    ) -> Budget:
        """Read `Limits`. Raises UserError for an unknown limit and for a value that is not a quantity."""
        if by not in (None, *COSTS):
            raise unknown("value of --by", str(by), COSTS)
        if by is not None and within is None and limits.get("min_accuracy") is None:
            raise UserError(
                f"--by {by} chooses the cheapest of what is accurate enough; add --min-accuracy or --within 1se"
            )
        if percentile not in (None, *PERCENTILES):
            raise unknown("percentile", str(percentile), PERCENTILES)
        if percentile is not None and limits.get("max_latency") is None and by != "latency":
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
        ordered = {name: parsed[name] for name in _MEASURES if name in parsed}
        return cls(ordered, percentile or PERCENTILES[0], None if within is None else _errors(within), by or COSTS[0])

    @property
    def needs_latency(self) -> bool:
        return "max_latency" in self.limits or self.by == "latency"

    @property
    def wants_cheapest(self) -> bool:
        """Whether it asks for the cheapest student that is accurate enough, not for the most accurate one."""
        return self.within is not None or "min_accuracy" in self.limits

    def __str__(self) -> str:
        written = [f"{_option(name)} {_MEASURES[name].show(limit, None)}" for name, limit in self.limits.items()]
        written += [] if self.within is None else [f"--within {self.within:g}se"]
        written += [f"--by {self.by}"] * (self.by != COSTS[0])
        return " ".join(written + [f"--percentile {self.percentile}"] * (self.percentile != PERCENTILES[0]))


@dataclass(frozen=True)
class Miss:
    """One limit that a student breaks: "needs 16.2M: 1.1 % over"."""

    limit: str
    need: float
    budget: float
    of: str = ""
    """What is measured, where the limit does not say: the kind of file, or the percentile."""

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
        nouns = {"max_params": " parameters", "max_size": f" of {self.of}", "max_latency": f" ({self.of})"}
        need += nouns.get(self.limit, "")
        if self.excess > 10:
            return f"needs {need}: {self.need / self.budget:,.0f} times the budget"
        return f"needs {need}: {_two_digits(100 * self.excess)} % over"


@dataclass(frozen=True)
class Candidate:
    """A student, and the limits that it misses; it fits if there are none."""

    variant: Variant
    misses: tuple[Miss, ...]
    on_front: bool  # nothing else is as cheap (MACs and bytes) and as accurate on val, and better in one of them
    gap: Gap | None = None  # to the most accurate one that fits, where both have predictions on val

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
    """The chosen variant, if any, and the reasons: all variants in the order of the ladder, and the nearest miss.

    rival: where the most accurate is chosen, a cheaper one whose distance from it can be chance, and the standard
    errors with which `within` chooses it.
    """

    budget: Budget
    candidates: tuple[Candidate, ...]
    chosen: Variant | None
    nearest: Candidate | None
    rival: tuple[Candidate, int] | None = None

    def demand(self) -> Variant:
        """The chosen variant; raises NothingFits, which names the nearest miss."""
        if self.chosen is not None:
            return self.chosen
        assert self.nearest is not None, "a ladder has students, and those that do not fit miss a limit"
        smallest = _first(self.candidates, _of_variant(_costs(self.budget)))
        if smallest is self.nearest:
            raise NothingFits(f"no student fits {self.budget}; the smallest comes nearest: {smallest}")
        raise NothingFits(f"no student fits {self.budget}; nearest miss: {self.nearest}; smallest: {smallest}")


def choose(variants: Sequence[Variant], budget: Budget) -> Choice:
    """The variant with the highest accuracy on val that fits every limit.

    With a minimum accuracy, or `within`: the cheapest that is accurate enough (`by`). Of equals, the one with fewer
    MACs, then the lower latency where it is known of all of them, then fewer bytes; a hardly smaller int8 file is last.
    Raises UserError for a latency that has not been measured.
    """
    missed = {variant.name: _misses(variant, budget) for variant in variants}
    fitting = [variant for variant in variants if not missed[variant.name]]
    best = _first(fitting, [lambda variant: -variant.val, *_costs(budget)]) if fitting else None
    candidates = tuple(
        Candidate(variant, missed[variant.name], _on_front(variant, variants), _gap(variant, best))
        for variant in variants
    )
    missing = [candidate for candidate in candidates if not candidate.fits]
    nearest = [lambda candidate: candidate.excess, *_of_variant(_costs(budget))]
    chosen, rival = best, None
    if best is not None and budget.within is not None:
        chosen = _cheapest(candidates, budget, budget.within).variant
    elif best is not None and budget.wants_cheapest:
        chosen = _first(fitting, [*_costs(budget), lambda variant: -variant.val])
    elif best is not None and best.correct is not None:
        rival = _rival(candidates, budget, best)
    return Choice(budget, candidates, chosen, _first(missing, nearest) if missing else None, rival)


def _cheapest(candidates: Sequence[Candidate], budget: Budget, errors: float) -> Candidate:
    """The cheapest that fits and is at most that many standard errors behind the most accurate one."""
    close = [c for c in candidates if c.fits and c.gap is not None and c.gap.errors <= errors]
    return _first(close, [*_of_variant(_costs(budget)), lambda candidate: -candidate.variant.val])


def _rival(candidates: Sequence[Candidate], budget: Budget, best: Variant) -> tuple[Candidate, int] | None:
    for errors in CHANCE:
        cheapest = _cheapest(candidates, budget, errors)
        if cheapest.variant.student.macs < best.student.macs:
            return cheapest, errors
    return None


def _gap(variant: Variant, best: Variant | None) -> Gap | None:
    if best is None or best.correct is None or variant.correct is None:
        return None
    return Gap.between(variant.correct, best.correct)


def _misses(variant: Variant, budget: Budget) -> tuple[Miss, ...]:
    kinds = {"max_size": variant.measured_by, "max_latency": budget.percentile}
    misses = []
    for name, limit in budget.limits.items():
        need = _MEASURES[name].of(variant)
        if need is None:
            raise UserError(
                f"{_option(name)}: the latency of {variant.name} has not been measured; run mcd profile --latency"
            )
        if need < limit if _is_minimum(name) else need > limit:
            misses.append(Miss(name, need, limit, kinds.get(name, "")))
    return tuple(misses)


Key = Callable[[T], float | None]


def _first(items: Sequence[T], keys: Sequence[Key[T]]) -> T:
    """The item that is least by the first key, then by the next, …; a key that is None for any of them is left out."""
    left = list(items)
    for key in keys:
        values = [key(item) for item in left]
        known = [value for value in values if value is not None]
        if len(known) == len(left):
            left = [item for item, value in zip(left, values, strict=True) if value == min(known)]
    return left[0]


def _costs(budget: Budget) -> list[Key[Variant]]:
    """What makes a variant cheaper than another, most important first."""
    costs: dict[str, Key[Variant]] = {name: _MEASURES[f"max_{name}"].of for name in COSTS}
    return [costs[budget.by], costs["macs"], costs["latency"], _is_hardly_smaller, costs["size"]]


def _of_variant(keys: Sequence[Key[Variant]]) -> list[Key[Candidate]]:
    return [lambda candidate, key=key: key(candidate.variant) for key in keys]  # type: ignore[misc]


def _is_hardly_smaller(variant: Variant) -> bool:
    """Whether it is an int8 file about as large as the student's float32 file."""
    return variant.format == INT8 and variant.bytes > MUCH_SMALLER * Variant(variant.student).bytes


def _on_front(variant: Variant, variants: Sequence[Variant]) -> bool:
    """Pareto-optimal in MACs, bytes, latency (if every variant has one) and accuracy on val."""
    timed = all(other.latency_ms is not None for other in variants)

    def of(variant: Variant) -> tuple[float, ...]:
        return variant.student.macs, variant.bytes, (variant.latency_ms or 0.0) * timed, -variant.val

    mine, others = of(variant), [of(other) for other in variants]
    return not any(o != mine and all(a <= b for a, b in zip(o, mine, strict=True)) for o in others)


def _errors(written: str) -> float:
    """`1se` → 1.0. Raises UserError."""
    match = re.fullmatch(r"(\d{1,3}(?:\.\d{1,3})?) ?se", str(written), re.ASCII)
    if match is None:
        raise UserError(f"--within: {written!r} is not a number of standard errors; write it like 1se or 2se")
    return float(match[1])


def _is_minimum(name: str) -> bool:
    return name.startswith("min_")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


def _two_digits(percent: float) -> str:
    """Two digits; a value above 0 is never shown as 0."""
    if percent < 0.01:
        return "less than 0.01"
    return f"{percent:.2g}" if percent < 10 else f"{percent:.0f}"

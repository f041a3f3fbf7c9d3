"""Which parts a gain over kd has, and which claims the controls allow; in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mcd_cli.comparison.statistics import Contrast

SUBJECT = "mc-distil"
BASELINE = "kd"

INSTANCE_WEIGHTING, COLLABORATION, USE_OF_V = CLAIMS = ("instance weighting", "collaboration", "use of V")
CONTROLS: Mapping[str, tuple[str, ...]] = {
    "-mean": (INSTANCE_WEIGHTING, COLLABORATION),
    "-shuffle": (INSTANCE_WEIGHTING, COLLABORATION),
    "-scalar": (INSTANCE_WEIGHTING, COLLABORATION),
    "kd-total-2": (COLLABORATION,),
    "kd-total-3": (COLLABORATION,),
    "constant-half": (COLLABORATION,),
    "constant-one": (COLLABORATION,),
    "-alone": (COLLABORATION,),
    "kd-train-val": (USE_OF_V,),
    "kd-tuned": (),
    "-nops": (),
    "-frozen": (),
    "-image": (),
    "-paper": (),
}
"""Every control, and the claims for which the subject must beat it. Without claims, only the difference is stated.

A name with a leading dash is a suffix: each subject has its own control (mc-distil-mean for mc-distil).
"""
MEAN, ALONE = "-mean", "-alone"  # controls that measure parts of the gain
HEAVIER, CONSTANT = "kd-total-", "constant-"  # families, from which the control nearest in total weight is used

UNEVEN = 0.2  # difference in total weight above which a pair's two weights are stated

Pair = tuple[str, str]  # a minus b


@dataclass(frozen=True)
class Part:
    """A part of the gain: the contrast of a pair, or the contenders that are missing."""

    name: str
    pair: Pair | None
    missing: str = ""


@dataclass(frozen=True)
class Claim:
    """A claim that is made only if the subject beats every one of `against`."""

    name: str
    against: tuple[str, ...]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Question:
    """Everything the verdict needs: the parts of the gain, the claims, and other pairs to state."""

    subject: str
    parts: tuple[Part, ...]
    claims: tuple[Claim, ...]
    beside: tuple[Pair, ...] = field(default=())

    def pairs(self) -> list[Pair]:
        """The family of control contrasts, each once."""
        pairs = [part.pair for part in self.parts if part.pair]
        pairs += [(self.subject, other) for claim in self.claims for other in claim.against]
        return list(dict.fromkeys([*pairs, *self.beside]))


def subjects_of(names: Iterable[str]) -> list[str]:
    """The contenders that are judged: mc-distil, and its variants that are not a control of another."""
    endings = tuple(name for name in CONTROLS if name.startswith("-"))
    return [name for name in names if name.startswith(SUBJECT) and not name.endswith(endings)]


def controls_of(subject: str) -> dict[str, tuple[str, ...]]:
    """The subject's controls by name, each with the claims that need it."""
    return {subject + name if name.startswith("-") else name: claims for name, claims in CONTROLS.items()}


def question_for(subject: str, totals: Mapping[str, float]) -> Question | None:
    """The question that these contenders can answer. totals: name → total loss weight, averaged over training.

    The parts add up: kd → kd at the total weight nearest to the subject's → constant weights with the pooled term,
    also the nearest → learned weights without instances (mean) → the subject. A control of the subject is named
    after it. None without kd.
    """
    if BASELINE not in totals:
        return None

    def nearest(prefix: str, to: float) -> str | None:
        matches = [name for name in totals if name.startswith(prefix)]
        return min(matches, key=lambda name: abs(totals[name] - to)) if matches else None

    constant = nearest(CONSTANT, totals[subject])
    heavier = nearest(HEAVIER, totals[subject] if constant is None else totals[constant])
    mean, alone = (name if name in totals else None for name in (subject + MEAN, subject + ALONE))

    def part(name: str, a: str | None, b: str | None, needed: Sequence[str]) -> Part:
        if a is not None and b is not None:
            return Part(name, (a, b))
        missing = [need for need, name_or_none in zip(needed, (a, b), strict=True) if name_or_none is None]
        return Part(name, None, " and ".join(missing))

    parts = (
        part("total weight", heavier, BASELINE, ("kd-total-2 or -3", BASELINE)),
        part("pooled term", constant, heavier, ("constant-half or -one", "kd-total-2 or -3")),
        part("learned mixture", mean, constant, (subject + MEAN, "constant-half or -one")),
        part("instance weights", subject, mean, (subject, subject + MEAN)),
        part("sharing one C-NET", subject, alone, (subject, subject + ALONE)),
    )
    controls = controls_of(subject)
    claims = []
    for name in CLAIMS:
        needed = [other for other, needed_by in controls.items() if name in needed_by]
        ran = tuple(other for other in needed if other in totals)
        claims.append(Claim(name, ran, tuple(other for other in needed if other not in totals)))
    beside = tuple((subject, other) for other, needed_by in controls.items() if not needed_by and other in totals)
    return Question(subject, parts, tuple(claims), beside)


def beats(contrast: Contrast) -> bool:
    return contrast.difference > 0 and not contrast.within_noise


def sentences(
    question: Question, gain: Contrast, answers: Mapping[Pair, Contrast], totals: Mapping[str, float]
) -> list[str]:
    """The verdict in words: the parts of the gain in one line, then a line per claim."""
    parts = [f"{part.name} {_part(part, answers, totals)}" for part in question.parts]
    weight = f"total weight {totals[question.subject]:.2f} against {totals[BASELINE]:.2f}"
    lines = [f"{question.subject} over kd: {points(gain)} ({weight}; in points). Parts: {'; '.join(parts)}."]
    return lines + [_claim(claim, question.subject, answers) for claim in question.claims]


def claimed(claim: Claim, subject: str, answers: Mapping[Pair, Contrast]) -> bool:
    """Whether no control is missing and the subject beats them all."""
    return not claim.missing and all(beats(answers[subject, other]) for other in claim.against)


def _claim(claim: Claim, subject: str, answers: Mapping[Pair, Contrast]) -> str:
    if claimed(claim, subject, answers):
        return f"{claim.name}: claimed; {subject} beats {', '.join(claim.against)}."
    lost = [other for other in claim.against if not beats(answers[subject, other])]
    reasons = []
    if lost:
        shown = ", ".join(f"{other} ({points(answers[subject, other])})" for other in lost)
        reasons.append(f"{subject} does not beat {shown}")
    if claim.missing:
        is_are = "is" if len(claim.missing) == 1 else "are"
        reasons.append(f"{', '.join(claim.missing)} {is_are} missing")
    return f"{claim.name}: not claimed; {'; '.join(reasons)}."


def _part(part: Part, answers: Mapping[Pair, Contrast], totals: Mapping[str, float]) -> str:
    if part.pair is None:
        return f"unknown ({part.missing} missing)"
    a, b = part.pair
    uneven = abs(totals[a] - totals[b]) > UNEVEN and part.name != "total weight"
    weights = f", at total weights {totals[a]:.2f} and {totals[b]:.2f}" if uneven else ""
    return f"{points(answers[part.pair])} ({a} − {b}{weights})"


def points(contrast: Contrast) -> str:
    """The difference in percentage points, marked if it is within noise."""
    return f"{100 * contrast.difference:+.2f}" + (" within noise" if contrast.within_noise else "")

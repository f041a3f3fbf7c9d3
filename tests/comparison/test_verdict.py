"""The verdict: its parts add up, and it claims nothing that a control does not support."""

from __future__ import annotations

import numpy as np
import pytest

from mcd_cli.comparison.statistics import Contrast, contrasts
from mcd_cli.comparison.verdict import (
    CONTROLS,
    SUBJECT,
    Question,
    claimed,
    controls_of,
    question_for,
    sentences,
    subjects_of,
)
from mcd_cli.recipe.loading import recipes_folder
from mcd_cli.recipe.overlays import SHARED, contender_names, find_contenders

TRUE_MEANS = {
    "kd": 0.34,
    "kd-total-2": 0.36,
    "kd-total-3": 0.37,
    "constant-half": 0.35,
    "constant-one": 0.366,
    "mc-distil": 0.40,
    "mc-distil-mean": 0.38,
    "mc-distil-shuffle": 0.379,
    "mc-distil-scalar": 0.381,
    "mc-distil-alone": 0.385,
    "kd-train-val": 0.37,
}
TOTALS = {"kd-total-2": 2.0, "kd-total-3": 3.0, "constant-half": 1.5, "constant-one": 3.0} | {
    name: 2.8 for name in TRUE_MEANS if name.startswith("mc-distil")
}


def judged(**means: float) -> tuple[Question, Contrast, dict[tuple[str, str], Contrast], dict[str, float]]:
    """A question and its answers from contenders with these means: 5 seeds, 100 images, little noise."""
    random = np.random.default_rng(0)
    right = {name: mean + 0.002 * random.standard_normal((5, 100)) for name, mean in means.items()}
    totals = {name: TOTALS.get(name, 1.0) for name in means}
    question = question_for("mc-distil", totals)
    assert question is not None
    answers = contrasts({(a, b): right[a] - right[b] for a, b in question.pairs()}, resamples=500)
    gain = contrasts({"gain": right[question.subject] - right["kd"]}, resamples=500)["gain"]
    return question, gain, answers, totals


def claims(**means: float) -> dict[str, bool]:
    question, _, answers, _ = judged(**means)
    return {claim.name: claimed(claim, question.subject, answers) for claim in question.claims}


def test_the_parts_add_up_to_the_gain() -> None:
    question, gain, answers, totals = judged(**TRUE_MEANS)
    pairs = {part.name: part.pair for part in question.parts}
    assert pairs == {
        "total weight": ("kd-total-3", "kd"),  # 3 is nearer to 2.8 than 2, for constant-one as well
        "pooled term": ("constant-one", "kd-total-3"),
        "learned mixture": ("mc-distil-mean", "constant-one"),
        "instance weights": ("mc-distil", "mc-distil-mean"),
        "sharing one C-NET": ("mc-distil", "mc-distil-alone"),
    }
    summed = sum(answers[pair].difference for name, pair in pairs.items() if pair and not name.startswith("sharing"))
    assert summed == pytest.approx(gain.difference)
    (first, *_) = sentences(question, gain, answers, totals)
    assert first.startswith(f"mc-distil over kd: {100 * gain.difference:+.2f} (")
    assert "total weight 2.80 against 1.00" in first
    instance = answers["mc-distil", "mc-distil-mean"].difference
    assert instance == pytest.approx(0.02, abs=0.001)
    assert f"instance weights {100 * instance:+.2f} (mc-distil − mc-distil-mean)" in first


def test_claims_where_every_control_is_beaten() -> None:
    assert claims(**TRUE_MEANS) == {"instance weighting": True, "collaboration": True, "use of V": True}


@pytest.mark.parametrize(
    ("control", "lost"),
    [
        ("mc-distil-mean", {"instance weighting", "collaboration"}),
        ("mc-distil-shuffle", {"instance weighting", "collaboration"}),
        ("mc-distil-scalar", {"instance weighting", "collaboration"}),
        ("kd-total-2", {"collaboration"}),
        ("constant-half", {"collaboration"}),
        ("mc-distil-alone", {"collaboration"}),
        ("kd-train-val", {"use of V"}),
    ],
)
def test_one_control_as_good_or_missing_takes_the_claim_away(control: str, lost: set[str]) -> None:
    as_good = TRUE_MEANS | {control: TRUE_MEANS["mc-distil"]}
    without = {name: mean for name, mean in TRUE_MEANS.items() if name != control}
    for means in (as_good, without):
        assert {name for name, is_claimed in claims(**means).items() if not is_claimed} == lost
    question, gain, answers, totals = judged(**without)
    told = "\n".join(sentences(question, gain, answers, totals))
    assert f"{control} is missing" in told or f"{control} are missing" in told


def test_a_worse_control_that_is_missing_is_told_in_the_parts() -> None:
    question, gain, answers, totals = judged(**{"kd": 0.34, "mc-distil": 0.4})
    told = sentences(question, gain, answers, totals)
    assert "total weight unknown (kd-total-2 or -3 missing)" in told[0]
    assert all("not claimed" in line for line in told[1:])


def test_whose_gain_it_is() -> None:
    names = ["kd", "mc-distil-mean", "mc-distil-normalised", "mc-distil-normalised-alone", "mc-distil-nops"]
    assert subjects_of([*names, "mc-distil"]) == ["mc-distil-normalised", "mc-distil"]
    assert subjects_of(["kd", "ce"]) == []
    assert question_for("mc-distil", {"mc-distil": 1.0}) is None


def test_a_variant_has_controls_of_its_own() -> None:
    question = question_for(
        "mc-distil-normalised",
        dict.fromkeys([*TRUE_MEANS, "mc-distil-normalised-mean"], 1.0) | {"mc-distil-normalised": 3.0},
    )
    assert question is not None
    (instance, *_) = question.claims
    assert instance.against == ("mc-distil-normalised-mean",)
    assert instance.missing == ("mc-distil-normalised-shuffle", "mc-distil-normalised-scalar")


def test_every_control_is_an_overlay_and_every_overlay_a_control() -> None:
    """What lies in recipes/controls is judged as something: a subject, its control, or a change for all contenders."""
    assert set(controls_of(SUBJECT)) <= set(contender_names())
    for path in sorted((recipes_folder() / "controls").iterdir()):
        changes = find_contenders(path.stem)[0].changes
        of_all = bool(set(changes) & set(SHARED))
        names = [name for subject in subjects_of(contender_names()) for name in controls_of(subject)]
        assert of_all or path.stem in names or subjects_of([path.stem]), f"{path} is not in CONTROLS"
    assert len(controls_of(SUBJECT)) == len(CONTROLS)

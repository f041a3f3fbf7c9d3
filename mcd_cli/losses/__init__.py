"""The losses by name. A loss is one function of a student's logits for one image, and its row here. No torch.

A loss takes the students' logits z, the logits t that they follow, the labels y and its temperature τ, and returns one
value ℓ_ij for each image i and student j. ℓ_ij depends only on z_ij and on constants (the targets, the labels): the
meta-gradient relies on it. Weights and the mean over images are applied by the caller.

To add a loss: one function in a file of this room, and one row below. A bank is a tuple of terms: which losses a
student has, whom each follows, and at what temperature.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcd_cli.registry import Row, Table

TEACHER, POOLED, LARGER = "teacher", "pooled", "larger"
"""Whose logits a loss can follow: the teacher's, those of the students pooled, those of the next larger student."""

WARM_UP = 1 / 12
"""The ramp of DKD and its descendants: 20 epochs of 240."""


@dataclass(frozen=True)
class LossSpec(Row):
    """Describes a loss without importing it. The defaults are those of its paper or of its authors' code."""

    summary: str
    """One line, for the documentation."""
    source: str
    tau: float | None = None
    """Its temperature; None: the recipe's `distill.tau`."""
    weight: float = 1.0
    """Its weight, relative to a label loss of weight 1 unless `source` says otherwise."""
    ramp: float = 0.0
    """Share of the schedule over which it grows from 0 to its full size."""
    follows: str = TEACHER
    """Whose logits it follows unless a bank says otherwise; empty if it needs only the labels."""
    per_image: bool = True
    """Whether ℓ_ij depends only on image i. If not, it uses statistics of the batch, which count as constants."""


LOSSES = Table(
    "loss",
    {
        "ce": LossSpec("mcd_cli.losses.ce:ce", "cross-entropy against the label", "", 1.0, follows=""),
        "kd": LossSpec("mcd_cli.losses.kd:kd", "KL from the target to the student", "Hinton et al. 2015"),
        "tckd": LossSpec(
            "mcd_cli.losses.dkd:tckd",
            "the label against all other classes",
            "DKD, Zhao et al. CVPR 2022",
            4.0,
            ramp=WARM_UP,
        ),
        "nckd": LossSpec(
            "mcd_cli.losses.dkd:nckd",
            "the other classes among themselves",
            "DKD, Zhao et al. CVPR 2022",
            4.0,
            weight=8.0,
            ramp=WARM_UP,
        ),
        "lskd": LossSpec(
            "mcd_cli.losses.lskd:lskd",
            "kd of standardised logits",
            "Sun et al. CVPR 2024; the label's weight is 0.1",
            2.0,
            weight=9.0,
        ),
        "lskd-tckd": LossSpec(
            "mcd_cli.losses.lskd:tckd",
            "tckd of standardised logits",
            "Sun et al. CVPR 2024, over DKD",
            2.0,
            weight=9.0,
            ramp=WARM_UP,
        ),
        "lskd-nckd": LossSpec(
            "mcd_cli.losses.lskd:nckd",
            "nckd of standardised logits",
            "Sun et al. CVPR 2024, over DKD",
            2.0,
            weight=72.0,
            ramp=WARM_UP,
        ),
        "normkd": LossSpec(
            "mcd_cli.losses.normkd:normkd",
            "kd, each side at a temperature in proportion to its logits' spread",
            "Chi et al. 2023; the label's weight is 0.1",
            2.0,
            weight=0.9,
        ),
        "nkd-target": LossSpec(
            "mcd_cli.losses.nkd:target",
            "cross-entropy against the label, times the target's probability of it",
            "NKD, Yang et al. ICCV 2023",
            1.0,
        ),
        "nkd-others": LossSpec(
            "mcd_cli.losses.nkd:others",
            "cross-entropy of the other classes among themselves",
            "NKD, Yang et al. ICCV 2023",
            1.0,
            weight=1.5,
        ),
        "ttm": LossSpec(
            "mcd_cli.losses.wttm:ttm",
            "kd with a temperature only for the target",
            "Zheng & Yang ICLR 2024; weights are tuned for each pair",
            10.0,
            weight=45.0,
        ),
        "wttm": LossSpec(
            "mcd_cli.losses.wttm:wttm",
            "ttm, with a larger weight where the target is uncertain",
            "Zheng & Yang ICLR 2024; weights are tuned for each pair",
            5.0,
            weight=4.0,
        ),
        "rld-scd": LossSpec(
            "mcd_cli.losses.rld:scd",
            "the label against the rest, at the target's highest probability",
            "RLD, Sun et al. ICCV 2025",
            1.0,
            ramp=WARM_UP,
        ),
        "rld-mcd": LossSpec(
            "mcd_cli.losses.rld:mcd",
            "the classes that the target ranks below the label",
            "RLD, Sun et al. ICCV 2025",
            4.0,
            weight=8.0,
            ramp=WARM_UP,
        ),
        "dist-inter": LossSpec(
            "mcd_cli.losses.dist:inter",
            "correlation with the target over the classes of an image",
            "DIST, Huang et al. NeurIPS 2022",
            4.0,
            weight=2.0,
        ),
        "dist-intra": LossSpec(
            "mcd_cli.losses.dist:intra",
            "correlation with the target over the images of a batch",
            "DIST, Huang et al. NeurIPS 2022",
            4.0,
            weight=2.0,
            per_image=False,
        ),
        "wsld": LossSpec(
            "mcd_cli.losses.wsld:wsld",
            "kd, with a smaller weight on images where the student is better than the target",
            "Zhou et al. ICLR 2021",
            2.0,
            weight=2.5,
        ),
    },
)


@dataclass(frozen=True)
class Term:
    """One loss of a bank."""

    loss: str
    """Its row in LOSSES."""
    name: str
    """The name of its weight in metrics and pictures."""
    follows: str
    """TEACHER, POOLED or LARGER; empty if it needs only the labels."""
    tau: float
    weight: float = 1.0
    """Its constant weight, if no C-NET sets it."""
    ramp: float = 0.0


def term(
    loss: str,
    *,
    tau: float | None = None,
    weight: float | None = None,
    ramp: float | None = None,
    follows: str | None = None,
    name: str | None = None,
    recipe_tau: float = 2.0,
) -> Term:
    """A term, with its row's defaults for what is not given; it is named after its loss and whom it follows.

    recipe_tau: the recipe's `distill.tau`, the temperature of a loss whose row has none.
    """
    row = LOSSES[loss]
    own = recipe_tau if row.tau is None else row.tau
    follows = row.follows if follows is None else follows
    return Term(
        loss,
        name or (loss if follows in ("", TEACHER) else f"{loss}/{follows}"),
        follows,
        own if tau is None else tau,
        row.weight if weight is None else weight,
        row.ramp if ramp is None else ramp,
    )

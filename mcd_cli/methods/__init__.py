"""The methods by name. A method is defined in two places: its class (see base.py) and its row here. No torch.

To add a method: one class in a file, and one row below; a new option goes into settings.py, too.
"""

from __future__ import annotations

from dataclasses import dataclass

from mcd_cli.registry import Row, Table


@dataclass(frozen=True)
class MethodSpec(Row):
    """Describes a method without importing it; the recipe, the help and `compare` need nothing else."""

    summary: str
    """One line, for the help."""
    settings: tuple[str, ...]
    """The keys of `[distill]` that it reads. Recipes that differ in other keys train the same students."""
    learned: bool = False
    """Whether a C-NET sets the weights of its losses."""
    needs_two: str = ""
    """Why it needs two students or more; empty if one is enough."""
    alone: str | None = None
    """The method that it equals with a single student; with `needs_two`, the one to use instead."""
    first_link: str | None = None
    """The method that trains the largest student in the same way: a comparison trains that student once."""
    in_paper: bool = False
    """Whether it is a column of the paper's Tables 1 and 2."""


METHODS = Table(
    "method",
    {
        "ce": MethodSpec("mcd_cli.methods.ce:CE", "only the labels", (), in_paper=True),
        "kd": MethodSpec(
            "mcd_cli.methods.kd:KD",
            "each student follows the labels and the teacher",
            ("tau", "lambda", "total"),
            in_paper=True,
        ),
        "takd": MethodSpec(
            "mcd_cli.methods.takd:TAKD",
            "each student follows the next larger one",
            ("tau", "lambda", "total"),
            alone="kd",
            first_link="kd",
            in_paper=True,
        ),
        "dgkd": MethodSpec(
            "mcd_cli.methods.dgkd:DGKD",
            "each student follows the teacher and all larger students",
            ("tau", "lambda", "drop", "normalise"),
            alone="kd",
            first_link="kd",
            in_paper=True,
        ),
        "rmc": MethodSpec(
            "mcd_cli.methods.rmc:RMC",
            "kd, with the teacher softened image by image",
            ("tau", "lambda", "total", "alpha", "clip"),
            needs_two="the difficulty of an image is a variance over students",
            alone="kd",
            in_paper=True,
        ),
        "meta-distil": MethodSpec(
            "mcd_cli.methods.meta_distil:MetaDistil",
            "each student separately, with its own C-NET",
            ("tau", "losses"),
            learned=True,
            alone="mc-distil-nops",
            in_paper=True,
        ),
        "mc-distil-nops": MethodSpec(
            "mcd_cli.methods.mc_distil:MCDistilNoPS",
            "a C-NET weighs each image's losses for each student",
            ("tau", "losses"),
            learned=True,
        ),
        "mc-distil": MethodSpec(
            "mcd_cli.methods.mc_distil:MCDistil",
            "the same, with the students pooled as a second teacher",
            ("tau", "losses"),
            learned=True,
            alone="mc-distil-nops",
            in_paper=True,
        ),
        "constant": MethodSpec(
            "mcd_cli.methods.constant:Constant",
            "the losses of mc-distil at constant weights",
            ("tau", "constants"),
            needs_two="one student has no pooled term",
            alone="kd",
        ),
        "rule": MethodSpec(
            "mcd_cli.methods.rule:Rule",
            "kd, the label weighted by the teacher's probability of it",
            ("tau", "total"),
        ),
        "bank": MethodSpec(
            "mcd_cli.methods.bank:OwnBank",
            "losses of your choice at constant weights",
            ("tau", "losses", "total"),
        ),
        "dkd": MethodSpec(
            "mcd_cli.methods.logit_losses:DKD", "kd in two parts with separate weights (Zhao et al. 2022)", ("total",)
        ),
        "lskd": MethodSpec(
            "mcd_cli.methods.logit_losses:LSKD", "kd of standardised logits (Sun et al. 2024)", ("total",)
        ),
        "dkd-lskd": MethodSpec(
            "mcd_cli.methods.logit_losses:DKDLSKD", "dkd of standardised logits (Sun et al. 2024)", ("total",)
        ),
        "nkd": MethodSpec("mcd_cli.methods.logit_losses:NKD", "normalised kd (Yang et al. 2023)", ("total",)),
        "wttm": MethodSpec(
            "mcd_cli.methods.logit_losses:WTTM", "a temperature only for the teacher (Zheng & Yang 2024)", ("total",)
        ),
        "dist": MethodSpec(
            "mcd_cli.methods.logit_losses:DIST", "correlation with the teacher (Huang et al. 2022)", ("total",)
        ),
        "rld": MethodSpec(
            "mcd_cli.methods.logit_losses:RLD", "dkd without the teacher's mistakes (Sun et al. 2025)", ("total",)
        ),
        "wsld": MethodSpec(
            "mcd_cli.methods.logit_losses:WSLD", "less kd where the student is better (Zhou et al. 2021)", ("total",)
        ),
    },
)


def papers_methods() -> list[str]:
    """The columns of the paper's Tables 1 and 2, in their order."""
    return [name for name, spec in METHODS.items() if spec.in_paper]


def takers(setting: str) -> list[str]:
    """The methods that read this key of `[distill]`."""
    return [name for name, spec in METHODS.items() if setting in spec.settings]


def help_text() -> str:
    """A line for each method, for `mcd distill --help`."""
    width = max(map(len, METHODS))
    return "\n".join(["Methods:", *(f"  {name:{width}}  {spec.summary}" for name, spec in METHODS.items())])

"""The common style of all plots: colours, fonts, and file formats."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREY, RED = "#1b6ca8", "#777777", "#b5382c"


@dataclass(frozen=True)
class LossStyle:
    label: str
    colour: str


LOSSES = {
    "alpha": LossStyle("α (labels)", GREY),
    "ce": LossStyle("ce", GREY),
    "beta": LossStyle("β (teacher)", BLUE),
    "gamma": LossStyle("γ (pooled students)", "#c0504d"),
}
"""How the weight of a loss is shown, by the loss's name."""


OTHERS = ("#3a8f5c", "#8a5fb0", "#d08a1d", "#3aa5a5", "#a0522d")
"""Colours of losses without a letter, in turn."""


def loss_styles(names: Iterable[str]) -> list[LossStyle]:
    """How these losses are shown together: a loss without a letter is shown by its name."""
    colours = cycle(OTHERS)
    return [LOSSES[name] if name in LOSSES else LossStyle(name, next(colours)) for name in names]


def loss_label(name: str) -> str:
    """A loss's name in a table or on an axis."""
    return LOSSES[name].label if name in LOSSES else name


FORMATS: Mapping[str, Mapping[str, Any]] = {
    "png": {"dpi": 160, "pil_kwargs": {"compress_level": 2}},  # a tenth larger, in a quarter of the time
    "svg": {"metadata": {"Date": None}},
}
STYLE: Any = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "mcd"}


def as_files(figure: Figure) -> dict[str, bytes]:
    """The figure in every format, by suffix; laid out once, which takes longer than drawing it."""
    contents = {}
    for suffix, how in FORMATS.items():
        content = io.BytesIO()
        figure.savefig(content, format=suffix, **how)
        figure.set_layout_engine(None)
        contents[suffix] = content.getvalue()
    return contents

"""One look for all pictures: colours, fonts, and the files that a figure is written as."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, GREY, RED = "#1b6ca8", "#777777", "#b5382c"
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

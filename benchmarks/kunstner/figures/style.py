"""A paper's look: serif letters, thin frames, one colour and line style a method.

Colours are those of Okabe & Ito (2008), told apart by colour-blind readers.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, BinaryIO

from natgrad.compare.extras import require

COLOURS = {
    "GD": "#0072B2",
    "NGD": "#009E73",
    "EFGD": "#D55E00",
    "EF": "#D55E00",
    "Adam": "#CC79A7",
}
LINES = {"GD": "--", "NGD": "-", "EFGD": "-.", "EF": "-.", "Adam": ":"}
GREY = "#BBBBBB"
CLASSES = ("#56B4E9", "#E69F00")

_STYLE = {
    "font.family": "serif",
    "mathtext.fontset": "dejavuserif",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.labelsize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
}


def paper(draw: Callable[..., Any]) -> Callable[..., Any]:
    """`draw` under the paper's settings, which end with it."""

    @functools.wraps(draw)
    def styled(*args):
        with require("matplotlib").rc_context(_STYLE):
            return draw(*args)

    return styled


def figure(width: float, height: float) -> Any:
    """A figure of so many inches that draws to a file."""
    return require("matplotlib.figure").Figure(
        figsize=(width, height), layout="constrained"
    )


@paper
def save(figure: Any, file: BinaryIO) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, format="png", dpi=160)


def framed(axis: Any) -> None:
    """All four sides of the frame, for maps of parameters."""
    axis.spines[:].set_visible(True)

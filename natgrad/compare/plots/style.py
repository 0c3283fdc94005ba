"""What all pictures share: a figure without a display, colours, saving.

Colours are those of Okabe & Ito (2008), told apart by colour-blind readers; markers and
line styles differ too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from natgrad.compare.extras import require

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
COLOURS += ("#8C8C8C",)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

# A ratio of largest to smallest value above which an axis is logarithmic.
WIDE = 8.0


def look(index: int) -> dict[str, Any]:
    """Colour, marker and line of the approximation or optimizer at this place."""
    looks = {"color": COLOURS, "marker": MARKERS, "linestyle": LINES}
    return {name: values[index % len(values)] for name, values in looks.items()}


def styled(settings: dict[str, Any]) -> Callable[[Callable], Callable]:
    """Draw under some of matplotlib's settings, which end with the drawing."""

    def decorate(draw: Callable) -> Callable:
        @functools.wraps(draw)
        def drawn(*args: Any, **keywords: Any) -> Any:
            with require("matplotlib").rc_context(settings):
                return draw(*args, **keywords)

        return drawn

    return decorate


_PLAIN = {"axes.grid": True, "grid.alpha": 0.3, "axes.titlesize": 11}
_PLAIN |= {"axes.labelsize": 10, "legend.fontsize": 9}
plain = styled({**_PLAIN, "lines.linewidth": 1.7, "lines.markersize": 5})


def panels(
    title: str, shape: tuple[int, int], size: Any = (15, 8.4), **how: Any
) -> tuple[Any, Any]:
    """A figure that draws to a file, of some inches, and its axes [rows, columns]."""
    figure = require("matplotlib.figure").Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure, figure.subplots(*shape, squeeze=False, **how)


def legend_beside(
    figure: Any, axis: Any, place: str = "outside right center", columns: int = 1
) -> None:
    """One legend for all panels, of what one of them shows."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc=place, ncols=columns, fontsize=10)


def legend_below(axis: Any, columns: int) -> None:
    """A legend under a panel, where it covers nothing."""
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
    axis.legend(ncols=columns, fontsize=8, frameon=False, **place)


def one_a_line(axis: Any, rows: Sequence[Any]) -> None:
    """The name of one approximation at each ordinate, the first at the top."""
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)


def rounding(comparison: Any) -> float:
    """ε of the dtype of a comparison."""
    return 2.2e-16 if comparison.dtype == "float64" else 1.2e-7


def log_if_wide(axis: Any, values: Any) -> None:
    """A logarithmic ordinate where all values are above 0 and far apart."""
    finite = np.asarray(values, float)[np.isfinite(values)]
    if finite.size and finite.min() > 0 and finite.max() > WIDE * finite.min():
        axis.set_yscale("log")


def save(figure: Any, file: BinaryIO) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, format="png", dpi=130)

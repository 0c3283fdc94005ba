"""What all pictures share: a figure without a display, colours, saving.

Colours are those of Okabe & Ito (2008), told apart by colour-blind readers; markers and
line styles differ too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, BinaryIO

from natgrad.compare.extras import require

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))

# A ratio of largest to smallest value above which an axis is logarithmic.
WIDE = 8.0


def open_figure(title: str, size: tuple[float, float] = (15, 8.4)) -> Any:
    """A figure that draws to a file; its size in inches."""
    figure = require("matplotlib.figure").Figure(figsize=size, layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure


def save(figure: Any, file: BinaryIO) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, format="png", dpi=130)


def styles(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """name -> colour, line style and marker, told apart by two of the three."""
    return {
        name: {
            "color": COLOURS[index % len(COLOURS)],
            "linestyle": LINES[index % len(LINES)],
            "marker": MARKERS[index % len(MARKERS)],
        }
        for index, name in enumerate(names)
    }

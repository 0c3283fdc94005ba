"""Heat maps: which approximation is wrong in which block, and by how much."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from natgrad.compare.comparison import Comparison
from natgrad.compare.extras import require
from natgrad.compare.figures import Figures
from natgrad.compare.plots.style import open_figure
from natgrad.compare.row import Row
from natgrad.compare.tables import figure as written

# What is below this is written as 0: rounding, in any precision.
_FLOOR = 1e-6


def blocks(comparison: Comparison) -> Any:
    """Error of the matrix, divergence a parameter, and the step, by block.

    What agrees with the reference is left out, unless everything does.
    """
    rows = [row for row in comparison.rows if not row.agrees] or comparison.rows
    names = [figures.name for figures in rows[0].blocks]
    figure = open_figure(
        "Approximations by block, on each block's own square of F "
        f"(λ = {comparison.damping:g})",
        (4.5 + 2.4 * max(len(rows), 2), 2.6 + 0.36 * len(names)),
    )
    axes = figure.subplots(1, 3, sharey=True)
    panels: tuple[tuple[str, Callable[[Figures], float]], ...] = (
        ("‖A − F‖ / ‖F‖, Frobenius", lambda f: f.relative_error),
        ("KL of posteriors (nats a parameter)", lambda f: f.divergence / f.parameters),
        ("1 − cosine of the steps", lambda f: 1 - f.step_cosine),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        _map(figure, axis, rows, title, value)
    axes[0].set_yticks(range(len(names) + 1), ["all parameters", *names])
    return figure


def _map(figure: Any, axis: Any, rows: Sequence[Row], title: str, value) -> None:
    table = np.array([[value(f) for f in (row.whole, *row.blocks)] for row in rows]).T
    seen = table[np.isfinite(table) & (table > _FLOOR)]
    low, high = (seen.min(), seen.max()) if seen.size else (_FLOOR, 1.0)
    colours = require("matplotlib.colors").LogNorm(low, max(high, 2 * low))
    clipped = np.clip(table, low, None)
    image = axis.imshow(clipped, norm=colours, cmap="cividis", aspect="auto")
    for (row, column), number in np.ndenumerate(table):
        axis.text(
            column,
            row,
            "0" if abs(number) < _FLOOR else written(float(number)),
            ha="center",
            va="center",
            fontsize=8,
            color="black" if colours(max(number, low)) > 0.55 else "white",
        )
    names = [row.name for row in rows]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.axhline(0.5, color="white", linewidth=2.5)
    axis.set_title(title, fontsize=10)
    figure.colorbar(image, ax=axis, pad=0.02).ax.tick_params(which="both", labelsize=8)

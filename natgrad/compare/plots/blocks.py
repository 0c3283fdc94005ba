"""Heat maps: which approximation is wrong in which block, and by how much."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from natgrad.compare.comparison import Comparison
from natgrad.compare.extras import require
from natgrad.compare.figures import Figures
from natgrad.compare.plots.style import open_figure
from natgrad.compare.tables import figure as written

# Errors below this are drawn as this: rounding, in any precision.
_FLOOR = 1e-6


def blocks(comparison: Comparison) -> Any:
    """Error of the matrix, divergence a parameter, and the step, by block."""
    names = [figures.name for figures in comparison.rows[0].blocks]
    height = 1.9 + 0.42 * (len(names) + 1)
    width = 4.5 + 2.0 * len(comparison.rows)
    figure = open_figure(
        "Approximations by block, on each block's own square of F "
        f"(λ = {comparison.damping:g})",
        (max(11.0, width), max(3.6, height)),
    )
    axes = figure.subplots(1, 3, sharey=True)
    panels: tuple[tuple[str, Callable[[Figures], float]], ...] = (
        ("‖A − F‖ / ‖F‖, Frobenius", lambda f: f.relative_error),
        (
            "KL of the posteriors, nats a parameter",
            lambda f: f.divergence / f.parameters,
        ),
        ("1 − cosine of the steps", lambda f: 1 - f.step_cosine),
    )
    for axis, (title, value) in zip(axes, panels, strict=True):
        _map(figure, axis, comparison, title, value)
    axes[0].set_yticks(range(len(names) + 1), ["all", *names])
    return figure


def _map(figure: Any, axis: Any, comparison: Comparison, title: str, value) -> None:
    table = np.array(
        [[value(f) for f in (row.whole, *row.blocks)] for row in comparison.rows]
    ).T
    finite = table[np.isfinite(table)]
    highest = max(float(finite.max(initial=0)), 10 * _FLOOR)
    colours = require("matplotlib.colors").LogNorm(_FLOOR, highest)
    image = axis.imshow(
        np.clip(table, _FLOOR, None), norm=colours, cmap="cividis", aspect="auto"
    )
    for (row, column), number in np.ndenumerate(table):
        if np.isfinite(number):
            shade = colours(max(number, _FLOOR))
            text = "0" if abs(number) < _FLOOR else written(float(number))
            axis.text(
                column,
                row,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="black" if shade > 0.55 else "white",
            )
    names = [row.name for row in comparison.rows]
    axis.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axis.axhline(0.5, color="white", linewidth=2)
    axis.set_title(title, fontsize=10)
    bar = figure.colorbar(image, ax=axis, location="top", shrink=0.9, pad=0.02)
    bar.ax.tick_params(labelsize=8)

"""The last loss of every setting, and the settings that rounding decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.kunstner.figures.style import figure, paper
from benchmarks.kunstner.tuning import CHAOTIC, Grid
from natgrad.compare.extras import require

# Of the learning rates; at those below nothing moves.
_RATES = (1e-8, 1e10)


@paper
def grids(results: Mapping[str, tuple[Grid, ...]]) -> Any:
    """A row a data set, a column a method with a damping: loss over (λ, η)."""
    rows = {
        name: [grid for grid in tuned if len(grid.dampings) > 1]
        for name, tuned in results.items()
    }
    columns = max(map(len, rows.values()))
    page = figure(5 * columns, 3.6 * len(rows))
    axes = page.subplots(len(rows), columns, squeeze=False)
    for line, (name, tuned) in zip(axes, rows.items(), strict=True):
        finite = [grid.last[np.isfinite(grid.last)] for grid in tuned]
        low = min(map(np.min, finite))
        first = max(grid.best.losses[0] for grid in tuned)
        scale = require("matplotlib.colors").LogNorm(low, first)
        for axis, grid in zip(line, tuned, strict=False):
            shown = _map(axis, grid, scale)
            axis.set_title(f"{name}, {grid.method}")
        for axis in line[len(tuned) :]:
            axis.axis("off")
        page.colorbar(shown, ax=list(line), label="last loss (nats)", extend="max")
    named = {}
    for axis in axes.flat:
        handles, labels = axis.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    page.legend(
        named.values(), named.keys(), loc="outside lower center", ncols=len(named)
    )
    return page


def _map(axis: Any, grid: Grid, scale: Any) -> Any:
    colours = require("matplotlib").colormaps["viridis_r"]
    colours = colours.with_extremes(over="#EEEEEE")
    last = np.where(np.isfinite(grid.last), grid.last, 1e300)
    shown = axis.pcolormesh(
        grid.dampings, grid.rates, last, norm=scale, cmap=colours, shading="nearest"
    )
    rate, damping = np.nonzero(grid.spread > CHAOTIC)
    axis.plot(
        grid.dampings[damping],
        grid.rates[rate],
        ".",
        color="#D55E00",
        markersize=3,
        label="chaotic: rounding decides",
    )
    best = grid.best
    axis.plot(
        best.damping,
        best.rate,
        "*k",
        markersize=11,
        linestyle="",
        label="smallest last loss",
    )
    if best.chaotic and grid.steady is not None:
        axis.plot(
            grid.steady.damping,
            grid.steady.rate,
            "P",
            color="white",
            markeredgecolor="black",
            markersize=8,
            linestyle="",
            label="best that is not chaotic",
        )
    axis.set(
        xscale="log",
        yscale="log",
        ylim=_RATES,
        xlabel="damping λ",
        ylabel="learning rate η",
    )
    return shown

"""Figure 3: losses of the tuned methods, and the cosine between two of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.kunstner.figures.style import COLOURS, LINES, figure, paper
from benchmarks.kunstner.tuning import Grid, Run


@paper
def optimisation(
    results: Mapping[str, tuple[tuple[Grid, ...], np.ndarray | None]],
) -> Any:
    """A column a data set: losses above, cos(NGD, EFGD) along the EFGD run below.

    Args:
        results: data set -> (tuned methods, cosines; None where they are missing).
    """
    page = figure(4 * len(results), 6)
    axes = page.subplots(2, len(results), squeeze=False, height_ratios=(3, 1.4))
    for (above, below), (name, (grids, cosines)) in zip(
        axes.T, results.items(), strict=True
    ):
        for grid in grids:
            _curve(above, grid)
        above.set(title=name, yscale="log")
        above.tick_params(labelbottom=False)
        below.axhline(0, color="black", linewidth=0.6)
        if cosines is not None:
            below.plot(cosines, ".", color=COLOURS["EFGD"], markersize=3)
        below.set(ylim=(-1.05, 1.05), yticks=(-1, 0, 1), xlabel="iteration")
        below.sharex(above)
        below.grid(axis="y", alpha=0.3)
        below.legend(
            *above.get_legend_handles_labels(),
            loc="upper center",
            bbox_to_anchor=(0.5, -0.35),
        )
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("cos(NGD, EFGD)\nalong EFGD")
    return page


def _curve(axis: Any, grid: Grid) -> None:
    best, name = grid.best, grid.method
    style = {"color": COLOURS[name], "linewidth": 2.2}
    mark = ", CHAOTIC" if best.chaotic else ""
    axis.plot(
        best.losses,
        linestyle=LINES[name],
        label=f"{name}: {setting(best)}{mark}",
        **style,
    )
    if best.chaotic and grid.steady is not None:
        style = {**style, "linewidth": 1.2, "alpha": 0.6}
        axis.plot(
            grid.steady.losses,
            label=f"{name}, not chaotic: {setting(grid.steady)}",
            **style,
        )


def setting(run: Run) -> str:
    """η and λ as powers of ten."""
    rate = f"$\\eta=10^{{{math.log10(run.rate):.4g}}}$"
    if math.isnan(run.damping):
        return rate
    return f"{rate}, $\\lambda=10^{{{math.log10(run.damping):.4g}}}$"

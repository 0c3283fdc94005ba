"""Tuned methods from other starting points."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.kunstner.figures.style import COLOURS, LINES, figure, paper
from benchmarks.kunstner.starting_points import StartingPoints


@paper
def starting_points(results: Mapping[str, StartingPoints]) -> Any:
    """A panel a data set, one line a method and starting point."""
    page = figure(5 * len(results), 3.6)
    axes = page.subplots(1, len(results), squeeze=False)[0]
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        for method, losses in result.losses.items():
            for index, curve in enumerate(losses.T):
                axis.plot(
                    curve,
                    color=COLOURS[method],
                    linestyle=LINES[method],
                    linewidth=2,
                    label=f"{method}, tuned from 0" if index == 0 else None,
                )
        axis.axhline(result.least, color="black", linewidth=0.8, label="least loss")
        factors = ", ".join(f"{factor:g}" for factor in result.factors)
        axis.set(
            title=f"{name}: started at {factors} of $\\theta^*$",
            yscale="log",
            xlabel="iteration",
            xticks=range(0, len(curve), 5),
        )
        axis.legend()
    axes[0].set_ylabel("loss (nats)")
    return page

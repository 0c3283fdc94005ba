"""Pictures of a comparison: eigenvalues, and those of the ratio of A and F."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from natgrad.compare.comparison import Comparison
from natgrad.compare.plots.style import one_a_line, panels, plain, rounding, style


@plain
def spectra(comparison: Comparison) -> Any:
    """Spectra by rank, and the range of the eigenvalues of (F + λI)⁻¹(A + λI)."""
    estimated = "" if comparison.formed else ", estimated from products"
    figure, ((left, right),) = panels(
        f"Spectra: {comparison.parameters} parameters, {comparison.examples} examples, "
        f"damping λ = {comparison.damping:g}{estimated}",
        (1, 2),
        (13, 5.6),
        width_ratios=(3, 2),
    )
    named = [row for row in comparison.rows if not row.agrees]
    look = {row.name: style(index) for index, row in enumerate(named)}
    _eigenvalues(left, comparison, look)
    _ratios(right, comparison, look)
    return figure


def _eigenvalues(axis: Any, comparison: Comparison, look: dict[str, dict]) -> None:
    """The spectra of F and of what differs from it, by rank."""
    thick = {"color": "black", "linewidth": 3.5, "alpha": 0.35}
    curves = {f"F ({comparison.reference})": (comparison.spectrum, thick)}
    curves |= {name: (comparison[name].spectrum, look[name]) for name in look}
    floor = max(comparison.spectrum.values) * rounding(comparison)
    for label, (spectrum, how) in curves.items():
        ranks, values = np.array(spectrum.ranks), np.array(spectrum.values)
        above = values > floor
        every = max(1, int(above.sum()) // 8)
        ranks = np.maximum(ranks[above], 1)
        axis.plot(ranks, values[above], label=label, markevery=every, **how)
    dotted = {"color": "grey", "linestyle": ":", "linewidth": 1.2}
    if comparison.damping:
        axis.axhline(comparison.damping, label="damping λ", **dotted)
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="rank of the eigenvalue",
        ylabel="eigenvalue (nats per squared unit of the parameters)",
        title="Eigenvalues of F and of each approximation A",
    )
    axis.legend()


def _ratios(axis: Any, comparison: Comparison, look: dict[str, dict]) -> None:
    """The range of the generalised eigenvalues, and their median where it is known."""
    for index, row in enumerate(comparison.rows):
        how = look.get(row.name, {"color": "grey", "marker": "o"})
        colour, ends = how["color"], [row.lowest_ratio, row.highest_ratio]
        if all(math.isfinite(end) and end > 0 for end in ends):
            axis.plot(ends, [index, index], color=colour, linewidth=3, alpha=0.5)
            axis.plot(ends, [index, index], "|", color=colour, markersize=12)
        if math.isfinite(row.median_ratio) and row.median_ratio > 0:
            axis.plot(row.median_ratio, index, how["marker"], color=colour, ms=7)
    if not axis.lines:
        text = "none: F is singular without damping"
        axis.text(0.5, 0.5, text, ha="center", transform=axis.transAxes)
    one_a_line(axis, comparison.rows)
    axis.axvline(1, color="black", linewidth=0.9)
    marks = "ends and median" if comparison.formed else "bounds from inside"
    axis.set(
        xscale="log",
        xlabel="eigenvalue of (F + λI)⁻¹(A + λI)\n1 is exact, above 1 A is too large",
        title=f"Generalised eigenvalues: {marks}",
    )

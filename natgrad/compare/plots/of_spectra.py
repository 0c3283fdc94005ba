"""Eigenvalues: of F and its approximations, and of their ratio."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from natgrad.compare.comparison import Comparison
from natgrad.compare.plots.style import open_figure, styles


def spectra(comparison: Comparison) -> Any:
    """Spectra by rank, and the range of the eigenvalues of (F + λI)⁻¹(A + λI)."""
    estimated = "" if comparison.formed else ", estimated from products"
    figure = open_figure(
        f"Spectra: {comparison.parameters} parameters, {comparison.examples} examples, "
        f"damping λ = {comparison.damping:g}{estimated}",
        (13, 5.6),
    )
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    _curves(left, comparison)
    _ranges(right, comparison)
    return figure


def _curves(axis: Any, comparison: Comparison) -> None:
    top = max(comparison.spectrum.values)
    rounding = 2.2e-16 if comparison.dtype == "float64" else 1.2e-7
    floor = top * rounding
    named = [row for row in comparison.rows if not row.agrees]
    look = styles([row.name for row in named])

    def draw(spectrum, **style):
        ranks, values = np.array(spectrum.ranks), np.array(spectrum.values)
        seen = values > floor
        every = max(1, int(seen.sum()) // 8)
        axis.plot(np.maximum(ranks[seen], 1), values[seen], markevery=every, **style)

    draw(
        comparison.spectrum,
        color="black",
        linewidth=3.5,
        alpha=0.35,
        label=f"F ({comparison.reference})",
    )
    for row in named:
        draw(
            row.spectrum, label=row.name, linewidth=1.6, markersize=5, **look[row.name]
        )
    axis.axhline(comparison.damping, color="grey", linestyle=":", linewidth=1.2)
    axis.annotate(
        "damping λ",
        (0.01, comparison.damping),
        xycoords=("axes fraction", "data"),
        xytext=(0, 3),
        textcoords="offset points",
        color="grey",
        fontsize=9,
    )
    axis.set(
        xscale="log",
        yscale="log",
        xlabel="rank of the eigenvalue",
        ylabel="eigenvalue (nats per squared unit of the parameters)",
        title="Eigenvalues of F and of each approximation A",
    )
    axis.legend(fontsize=9)
    axis.grid(alpha=0.3)


def _ranges(axis: Any, comparison: Comparison) -> None:
    look = styles([row.name for row in comparison.rows if not row.agrees])
    plain = {"color": "grey", "marker": "o"}
    for index, row in enumerate(comparison.rows):
        style = look.get(row.name, plain)
        ends = [row.lowest_ratio, row.highest_ratio]
        if all(math.isfinite(end) and end > 0 for end in ends):
            axis.plot(
                ends, [index, index], color=style["color"], linewidth=3, alpha=0.5
            )
            axis.plot(ends, [index, index], "|", color=style["color"], markersize=12)
        if math.isfinite(row.median_ratio) and row.median_ratio > 0:
            axis.plot(
                row.median_ratio, index, style["marker"], color=style["color"], ms=7
            )
    axis.axvline(1, color="black", linewidth=0.9)
    axis.set_yticks(range(len(comparison.rows)), [row.name for row in comparison.rows])
    axis.set_ylim(len(comparison.rows) - 0.5, -0.5)
    marks = "ends and median" if comparison.formed else "bounds from inside"
    axis.set(
        xscale="log",
        xlabel="eigenvalue of (F + λI)⁻¹(A + λI)\n1 is exact, above 1 A is too large",
        title=f"Generalised eigenvalues: {marks}",
    )
    axis.grid(alpha=0.3)

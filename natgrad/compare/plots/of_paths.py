"""The KL divergence along each step, against the quadratic models of it."""

from __future__ import annotations

import math
from typing import Any

from natgrad.compare.comparison import Comparison
from natgrad.compare.plots.style import COLOURS, open_figure
from natgrad.compare.row import Row

_COLUMNS = 4


def quadratic(comparison: Comparison) -> Any:
    """One panel an approximation: KL by step size, as predicted and as it is.

    Of those that agree with the reference the first stands for all.
    """
    same = [row for row in comparison.rows if row.agrees]
    shown = [row for row in comparison.rows if not row.agrees or row is same[0]]
    count = len(shown)
    columns = min(_COLUMNS, count)
    lines = math.ceil(count / columns)
    figure = open_figure(
        "KL divergence along the damped step d = h (A + λI)⁻¹g, "
        f"λ = {comparison.damping:g}",
        (max(9.5, 3.3 * columns + 1.2), 2.9 * lines + 1.1),
    )
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index >= count:
            axis.axis("off")
            continue
        _panel(axis, shown[index])
        if index % columns == 0:
            axis.set_ylabel("KL (nats an example)")
        if index + columns >= count:
            axis.set_xlabel("step size h")
            axis.tick_params(labelbottom=True)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=10)
    return figure


def _panel(axis: Any, row: Row) -> None:
    points = sorted(row.path, key=lambda point: point.step_size)
    sizes = [point.step_size for point in points]
    series = (
        ("½⟨d, F d⟩, the quadratic model", "predicted_kl", "--", "s"),
        ("½⟨d, A d⟩, as A believes", "own_predicted_kl", ":", "^"),
        ("mean KL(p_θ ‖ p_{θ−d}), actual", "actual_kl", "-", "o"),
    )
    for index, (label, name, line, marker) in enumerate(series):
        axis.plot(
            sizes,
            [getattr(point, name) for point in points],
            linestyle=line,
            marker=marker,
            markersize=5,
            color=COLOURS[index],
            label=label,
        )
    if len(sizes) > 1 and min(sizes) > 0:
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
    axis.set_title(row.name, fontsize=10)
    axis.grid(alpha=0.3)

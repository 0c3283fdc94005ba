"""The picture of a comparison: errors, steps, predictions and costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from natgrad.compare.comparison import Comparison
from natgrad.compare.extras import require
from natgrad.compare.plots.style import COLOURS, MARKERS, WIDE, open_figure
from natgrad.compare.row import Row

# Where the picture of a step cuts it, in lengths of the exact step.
_LONGEST = 2.5


def fidelity(comparison: Comparison, *, title: str = "") -> Any:
    """Errors, steps, predictions and costs of the approximations.

    Args:
        comparison: what is drawn.
        title: what was compared on what; damping is said after it.
    """
    about = title or f"{comparison.parameters} parameters"
    figure = open_figure(
        f"Approximations against the exact Fisher: {about}, λ = {comparison.damping:g}"
    )
    axes = figure.subplots(2, 3)
    rows = comparison.rows
    _errors(axes[0, 0], rows, comparison)
    _arrows(axes[0, 1], rows)
    _dots(
        axes[1, 0],
        rows,
        "Fall of the loss along the full step",
        "nats an example (right is better)",
        (
            ("predicted by F", lambda row: row.predicted_loss_decrease),
            ("predicted by A itself", lambda row: row.own_predicted_loss_decrease),
            ("actual", lambda row: row.actual_loss_decrease),
        ),
    )
    _dots(
        axes[1, 1],
        rows,
        "KL divergence of the full step",
        "nats an example",
        (
            ("½⟨d, F d⟩", lambda row: row.predicted_kl),
            ("½⟨d, A d⟩", lambda row: row.own_predicted_kl),
            ("actual", lambda row: row.actual_kl),
        ),
    )
    _dots(
        axes[0, 2],
        rows,
        "Time of one step",
        "seconds",
        (
            ("run", lambda row: row.cost.run_seconds),
            ("compile, once", lambda row: row.cost.compile_seconds),
        ),
        log=True,
    )
    _dots(
        axes[1, 2],
        rows,
        "Memory",
        "megabytes",
        (
            ("statistics kept", lambda row: row.statistics_bytes / 1e6),
            ("temporary", lambda row: (row.cost.temporary_bytes or math.nan) / 1e6),
        ),
        log=True,
    )
    return figure


def _errors(axis: Any, rows: Sequence[Row], comparison: Comparison) -> None:
    """‖A − F‖/‖F‖ on a log axis; exact zeros stand at its left end."""
    positive = [row.relative_error for row in rows if row.relative_error > 0]
    rounding = 2.2e-16 if comparison.dtype == "float64" else 1.2e-7
    left = min([rounding, *positive]) / 3
    _names(axis, rows)
    for index, row in enumerate(rows):
        error = max(row.relative_error, left)
        colour = COLOURS[2] if row.agrees else COLOURS[1]
        axis.plot([left, error], [index, index], color=colour, linewidth=2)
        axis.plot(error, index, "o" if row.agrees else "s", color=colour)
    axis.axvline(rounding, color="grey", linestyle=":", linewidth=1)
    axis.set(
        xscale="log",
        xlim=(left, max([1.0, *positive]) * 3),
        title="Error of the matrix",
        xlabel="‖A − F‖ / ‖F‖, Frobenius (dotted: rounding)",
    )


def _arrows(axis: Any, rows: Sequence[Row]) -> None:
    """Each damped step relative to the exact one, which is (1, 0)."""
    ends: dict[tuple[float, float], list[str]] = {}
    for row in rows:
        cosine, ratio = row.step_cosine, row.step_norm_ratio
        if math.isfinite(cosine) and math.isfinite(ratio):
            ends.setdefault((round(cosine, 2), round(ratio, 2)), []).append(row.name)
    for index, ((cosine, ratio), names) in enumerate(ends.items()):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        cut, drawn = ratio > _LONGEST, min(ratio, _LONGEST)
        end = (drawn * cosine, drawn * math.sqrt(max(0.0, 1 - cosine**2)))
        line = "--" if cut else "-"
        axis.plot([0, end[0]], [0, end[1]], color=colour, linestyle=line, linewidth=1.8)
        label = f"{', '.join(names)}: length {ratio:g}, cosine {cosine:g}"
        axis.plot(*end, marker, color=colour, linestyle=line, label=label)
    axis.add_artist(
        require("matplotlib.patches").Circle((0, 0), 1, fill=False, color="lightgrey")
    )
    reach = min(_LONGEST, max([1.0, *(ratio for _, ratio in ends)]))
    backwards = any(cosine < 0 for cosine, _ in ends)
    axis.set_aspect("equal")
    axis.set(
        xlim=(-1.1 * reach, 1.1 * reach) if backwards else (-0.1 * reach, 2.1 * reach),
        ylim=(-0.1 * reach, 1.8 * reach),
        title="Damped step: length and angle to the exact one",
        xlabel=f"along the exact step (dashed: cut at length {_LONGEST:g})",
        ylabel="across it",
    )
    axis.legend(fontsize=8, loc="upper right")
    axis.grid(alpha=0.3)


def _dots(
    axis: Any,
    rows: Sequence[Row],
    title: str,
    unit: str,
    series: Sequence[tuple[str, Callable[[Row], float]]],
    log: bool = False,
) -> None:
    """One line an approximation, one marker a figure."""
    _names(axis, rows)
    values = [value(row) for _, value in series for row in rows]
    sizes = [abs(value) for value in values if math.isfinite(value) and value]
    wide = bool(sizes) and max(sizes) > WIDE * sorted(sizes)[len(sizes) // 2]
    for index, (label, value) in enumerate(series):
        axis.plot(
            [value(row) for row in rows],
            range(len(rows)),
            MARKERS[index],
            color=COLOURS[index],
            fillstyle="none" if index else "full",
            markersize=8 if index else 5,
            markeredgewidth=1.8,
            label=label,
        )
    if log:
        axis.set_xscale("log")
    elif wide:
        median = sorted(sizes)[len(sizes) // 2]
        threshold = 10 ** math.floor(math.log10(median))
        axis.set_xscale("symlog", linthresh=threshold, linscale=1.5)
    if not log:
        axis.axvline(0, color="grey", linewidth=0.8)
    axis.set(title=title, xlabel=unit)
    axis.legend(fontsize=8)


def _names(axis: Any, rows: Sequence[Row]) -> None:
    axis.set_yticks(range(len(rows)), [row.name for row in rows])
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.grid(alpha=0.3)

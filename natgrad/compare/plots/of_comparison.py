"""Pictures of a comparison: errors, steps, predictions, costs, spectra and blocks."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from natgrad.compare.comparison import Comparison
from natgrad.compare.extras import require
from natgrad.compare.figures import Figures
from natgrad.compare.plots import style
from natgrad.compare.plots.style import COLOURS, look, one_a_line
from natgrad.compare.row import Row
from natgrad.compare.tables import figure as written

# Where the picture of a step cuts it, in lengths of the exact step.
_LONGEST = 2.5
# What is below this is written as 0 in a block: rounding, in any precision.
_FLOOR = 1e-6

# Panels of `fidelity`: place, title, unit, logarithmic?, label -> attribute of a row.
_LOSS = {
    "predicted by F": "predicted_loss_decrease",
    "predicted by A itself": "own_predicted_loss_decrease",
    "actual": "actual_loss_decrease",
}
_KL = {"½⟨d, F d⟩": "predicted_kl", "½⟨d, A d⟩": "own_predicted_kl"}
_KL["actual"] = "actual_kl"
_TIME = {"run": "cost.run_seconds", "compile, once": "cost.compile_seconds"}
_BYTES = {"statistics": "statistics_bytes", "temporary": "cost.temporary_bytes"}
_PANELS = (
    ((1, 0), "Fall of the loss along the full step", "nats an example", False, _LOSS),
    ((1, 1), "KL divergence of the full step", "nats an example", False, _KL),
    ((0, 2), "Time of one step", "seconds", True, _TIME),
    ((1, 2), "Memory", "bytes", True, _BYTES),
)
# What `blocks` draws: title -> figure of a block.
_BLOCKS: dict[str, Callable[[Figures], float]] = {
    "‖A − F‖ / ‖F‖, Frobenius": lambda f: f.relative_error,
    "KL of laws (nats a parameter)": lambda f: f.divergence / f.parameters,
    "1 − cosine of the steps": lambda f: 1 - f.step_cosine,
}


@style.plain
def fidelity(comparison: Comparison, *, title: str = "") -> Any:
    """Errors, steps, predictions and costs of the approximations.

    Args:
        comparison: what is drawn.
        title: what was compared on what; damping is said after it.
    """
    about = title or f"{comparison.parameters} parameters"
    figure, axes = style.panels(
        f"Approximations against the exact Fisher: {about}, λ = {comparison.damping:g}",
        (2, 3),
    )
    _errors(axes[0, 0], comparison)
    _arrows(axes[0, 1], comparison.rows)
    for place, name, unit, log, series in _PANELS:
        _dots(axes[place], comparison.rows, series, log, unit)
        axes[place].set_title(name)
    return figure


@style.plain
def quadratic(comparison: Comparison) -> Any:
    """One panel an approximation: KL by step size, as predicted and as it is.

    Of those that agree with the reference the first stands for all.
    """
    same = [row for row in comparison.rows if row.agrees]
    shown = [row for row in comparison.rows if not row.agrees or row is same[0]]
    columns = min(4, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure, axes = style.panels(
        "KL divergence along the damped step d = h (A + λI)⁻¹g, "
        f"λ = {comparison.damping:g}",
        (lines, columns),
        (max(9.5, 3.3 * columns + 1.2), 2.9 * lines + 1.1),
        sharex=True,
        sharey=True,
    )
    for axis, row in zip(axes.flat, shown, strict=False):
        points = sorted(row.path, key=lambda point: point.step_size)
        sizes = [point.step_size for point in points]
        for index, (label, name) in enumerate(_KL.items()):
            values = [getattr(point, name) for point in points]
            axis.plot(sizes, values, label=label, **look(index))
        if len(sizes) > 1 and min(sizes) > 0:
            axis.set(xscale="log", yscale="log")
            axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axis.minorticks_off()
        axis.set(title=row.name, xlabel="step size h", ylabel="KL (nats an example)")
        axis.label_outer()
    for axis in axes.flat[len(shown) :]:
        axis.axis("off")
    style.legend_beside(figure, axes.flat[0], "outside lower center", 3)
    return figure


@style.plain
def blocks(comparison: Comparison) -> Any:
    """Error of the matrix, divergence a parameter, and the step, by block.

    What agrees with the reference is left out, unless everything does.
    """
    rows = [row for row in comparison.rows if not row.agrees] or comparison.rows
    names = [figures.name for figures in rows[0].blocks]
    figure, (axes,) = style.panels(
        "Approximations by block, on each block's own square of F "
        f"(λ = {comparison.damping:g})",
        (1, 3),
        (4.5 + 2.4 * max(len(rows), 2), 2.6 + 0.36 * len(names)),
        sharey=True,
    )
    for axis, (title, value) in zip(axes, _BLOCKS.items(), strict=True):
        table = [[value(f) for f in (row.whole, *row.blocks)] for row in rows]
        image = _heat(axis, np.array(table).T)
        axis.set_xticks(range(len(rows)), [row.name for row in rows])
        axis.tick_params(axis="x", labelrotation=45)
        axis.set_title(title, fontsize=10)
        bar = figure.colorbar(image, ax=axis, pad=0.02)
        bar.ax.tick_params(which="both", labelsize=8)
    axes[0].set_yticks(range(len(names) + 1), ["all parameters", *names])
    return figure


@style.plain
def spectra(comparison: Comparison) -> Any:
    """Spectra by rank, and the range of the eigenvalues of (F + λI)⁻¹(A + λI)."""
    estimated = "" if comparison.formed else ", estimated from products"
    figure, ((left, right),) = style.panels(
        f"Spectra: {comparison.parameters} parameters, {comparison.examples} examples, "
        f"damping λ = {comparison.damping:g}{estimated}",
        (1, 2),
        (13, 5.6),
        width_ratios=(3, 2),
    )
    named = [row for row in comparison.rows if not row.agrees]
    looks = {row.name: look(index) for index, row in enumerate(named)}
    _eigenvalues(left, comparison, looks)
    _ratios(right, comparison, looks)
    return figure


def _errors(axis: Any, comparison: Comparison) -> None:
    """‖A − F‖/‖F‖ on a log axis; exact zeros stand at its left end."""
    least = style.rounding(comparison)
    errors = [row.relative_error for row in comparison.rows if row.relative_error > 0]
    left = min([least, *errors]) / 3
    for index, row in enumerate(comparison.rows):
        error, colour = max(row.relative_error, left), COLOURS[2 if row.agrees else 1]
        axis.plot([left, error], [index, index], color=colour)
        axis.plot(error, index, "o" if row.agrees else "s", color=colour)
    one_a_line(axis, comparison.rows)
    axis.axvline(least, color="grey", linestyle=":", linewidth=1)
    axis.set(
        xscale="log",
        xlim=(left, max([1.0, *errors]) * 3),
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
        length, line = min(ratio, _LONGEST), "--" if ratio > _LONGEST else "-"
        end = (length * cosine, length * math.sqrt(max(0.0, 1 - cosine**2)))
        how = {**look(index), "linestyle": line, "markevery": [1]}
        label = f"{', '.join(names)}: length {ratio:g}, cosine {cosine:g}"
        axis.plot([0, end[0]], [0, end[1]], label=label, **how)
    circle = require("matplotlib.patches").Circle
    axis.add_artist(circle((0, 0), 1, fill=False, color="lightgrey"))
    reach = min(_LONGEST, max([1.0, *(ratio for _, ratio in ends)]))
    backwards = any(cosine < 0 for cosine, _ in ends)
    axis.set(
        aspect="equal",
        xlim=(-1.1 * reach if backwards else -0.1 * reach, 1.3 * reach),
        ylim=(-0.1 * reach, 1.1 * reach),
        title="Damped step: length and angle to the exact one",
        xlabel=f"along the exact step (dashed: cut at length {_LONGEST:g})",
        ylabel="across it",
    )
    style.legend_below(axis, 1)


def _dots(
    axis: Any, rows: Sequence[Row], series: dict[str, str], log: bool, unit: str
) -> None:
    """One line an approximation, one marker a figure."""
    values = np.array(
        [[operator.attrgetter(name)(row) for row in rows] for name in series.values()],
        float,
    )
    for index, (label, numbers) in enumerate(zip(series, values, strict=True)):
        how = {"fillstyle": "none", "markersize": 8} if index else {}
        how |= {
            "color": COLOURS[index],
            "marker": style.MARKERS[index],
            "linestyle": "",
        }
        axis.plot(numbers, range(len(rows)), label=label, markeredgewidth=1.8, **how)
    sizes = np.abs(values[np.isfinite(values) & (values != 0)])
    if log:
        axis.set_xscale("log")
    else:
        axis.axvline(0, color="grey", linewidth=0.8)
        if sizes.size and sizes.max() > style.WIDE * np.median(sizes):
            threshold = 10 ** math.floor(math.log10(np.median(sizes)))
            axis.set_xscale("symlog", linthresh=threshold, linscale=1.5)
            unit += f" (linear up to ±{threshold:g}, logarithmic beyond)"
    axis.margins(x=0.08)
    axis.set_xlabel(unit)
    one_a_line(axis, rows)
    style.legend_below(axis, len(series))


def _heat(axis: Any, table: np.ndarray) -> Any:
    """A heat map of numbers [parts, approximations], each written in its cell."""
    seen = table[np.isfinite(table) & (table > _FLOOR)]
    low, high = (seen.min(), seen.max()) if seen.size else (_FLOOR, 1.0)
    norm = require("matplotlib.colors").LogNorm(low, max(high, 2 * low))
    image = axis.imshow(
        np.clip(table, low, None), norm=norm, cmap="cividis", aspect="auto"
    )
    for (row, column), number in np.ndenumerate(table):
        text = "0" if abs(number) < _FLOOR else written(float(number))
        colour = "black" if norm(max(number, low)) > 0.55 else "white"
        place = {"ha": "center", "va": "center", "fontsize": 8}
        axis.text(column, row, text, color=colour, **place)
    axis.axhline(0.5, color="white", linewidth=2.5)
    axis.grid(visible=False)
    return image


def _eigenvalues(axis: Any, comparison: Comparison, looks: dict[str, dict]) -> None:
    """The spectra of F and of what differs from it, by rank."""
    thick = {"color": "black", "linewidth": 3.5, "alpha": 0.35}
    curves = {f"F ({comparison.reference})": (comparison.spectrum, thick)}
    curves |= {name: (comparison[name].spectrum, looks[name]) for name in looks}
    floor = max(comparison.spectrum.values) * style.rounding(comparison)
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


def _ratios(axis: Any, comparison: Comparison, looks: dict[str, dict]) -> None:
    """The range of the generalised eigenvalues, and their median where it is known."""
    for index, row in enumerate(comparison.rows):
        how = looks.get(row.name, {"color": "grey", "marker": "o"})
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

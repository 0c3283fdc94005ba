"""The pictures of the experiments, drawn like a paper's, without a display.

Colours are those of Okabe & Ito (2008), told apart by colour-blind readers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

from benchmarks.kunstner.adam import Adam
from benchmarks.kunstner.misspecification import Case
from benchmarks.kunstner.tuning import CHAOTIC, Grid, Run, StartingPoints
from benchmarks.kunstner.vector_field import ADAM_FIELDS, AXIS, VectorField
from natgrad.compare.extras import require
from natgrad.compare.plots.style import styled

# Of the files that the command writes.
NAMES = ("vector_field", "misspecification_linear", "misspecification_logistic")
NAMES += ("adam", "optimisation", "grids", "starting_points")

_COLOURS = {"GD": "#0072B2", "NGD": "#009E73", "EFGD": "#D55E00", "EF": "#D55E00"}
_LINES = {"GD": "--", "NGD": "-", "EFGD": "-.", "EF": "-."}
_ADAM = {"color": "#CC79A7", "linestyle": ":"}
_CLASSES = ("#56B4E9", "#E69F00")
_GREY = "#BBBBBB"
_LOGARITHMIC = {"xscale": "log", "yscale": "log", "box_aspect": 1}
_MOMENTS = {**_LOGARITHMIC, "ylabel": "mean over coordinates"}
_TITLES = {"GD": "Gradient descent", "NGD": "Natural gradient"}
_TITLES["EF"] = "Empirical Fisher"

_paper = styled(
    {
        "font.family": "serif",
        "mathtext.fontset": "dejavuserif",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "lines.linewidth": 2,
    }
)


def _page(width: float, height: float, rows: int, columns: int, **how: Any) -> Any:
    """A figure of so many inches that draws to a file, and its axes."""
    page = require("matplotlib.figure").Figure((width, height), layout="constrained")
    return page, page.subplots(rows, columns, squeeze=False, **how)


@_paper
def save(figure: Any, file: BinaryIO) -> None:
    """Write a figure as PNG."""
    figure.savefig(file, format="png", dpi=160)


@_paper
def vector_field(result: VectorField) -> Any:
    """Figure 1: the data, and one field each with paths over loss contours."""
    page, ((left, *axes),) = _page(12, 3.4, 1, 1 + len(_TITLES))
    problem, (bias, slope) = result.problem, result.minimum
    x, ends = np.asarray(problem.features)[:, 1], np.array([0.0, 9.0])
    left.plot(x, problem.targets, ".", color=_CLASSES[0], markersize=3, alpha=0.5)
    left.plot(ends, bias + slope * ends, "k--", label="fit at $\\theta^*$")
    left.set(title="Data", xlim=(-1, 10), ylim=(-2, 22), xlabel="$x$", ylabel="$y$")
    left.set_box_aspect(1)
    left.legend(loc="upper left")
    for axis, (name, title) in zip(axes, _TITLES.items(), strict=True):
        _field(axis, result, name, title)
    return page


@_paper
def misspecification(cases: Sequence[Case]) -> Any:
    """Figure 2: the data, and what F and E make of the loss at its minimum."""
    page, axes = _page(10, 6.2, 2, len(cases))
    for (above, below), case in zip(axes.T, cases, strict=True):
        _data(above, case)
        above.set_title(case.name[0].upper() + case.name[1:])
        low, high = case.ratios
        title = f"eigenvalues of $F^{{-1}}E$: {low:.2f}, {high:.2f}"
        below.set_title(title, fontsize=9)
        _contours(below, case)
        _ellipse(below, case, case.fisher, "Fisher $F$", _look("NGD"))
        _ellipse(below, case, case.empirical, "empirical Fisher $E$", _look("EF"))
    axes[0, 0].set_ylabel(f"data\n{axes[0, 0].get_ylabel()}")
    axes[1, 0].set_ylabel(f"quadratic model\n{axes[1, 0].get_ylabel()}")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return page


@_paper
def adam(fields: VectorField, result: Adam) -> Any:
    """Adam is not the natural gradient: fields above; ellipses and moments below."""
    page, (above, (ellipses, descent, batches)) = _page(11.5, 7.4, 2, 3)
    titles = {"NGD": _TITLES["NGD"], **{name: name for name in ADAM_FIELDS}}
    for axis, (name, title) in zip(above, titles.items(), strict=True):
        _field(axis, fields, name, title)
    case = result.case
    fisher, empirical = (np.diag(m) for m in (case.fisher, case.empirical))
    _contours(ellipses, case)
    _ellipse(ellipses, case, case.fisher, "$F$", _look("NGD"))
    _ellipse(ellipses, case, np.diag(fisher), "diag $F$", _look("GD"))
    _ellipse(ellipses, case, np.diag(empirical), "diag $E$: Adam's $v$, $B=1$", _ADAM)
    title = f"Quadratic models at $\\theta^*$\n({case.name})"
    ellipses.set_title(title, fontsize=10)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.18), "ncols": 2}
    ellipses.legend(**below, fontsize=8)
    descent.plot(result.steps, result.descent_fisher, label="diag $F$", **_look("NGD"))
    descent.plot(result.steps, result.descent_moment, label="Adam's $v$", **_ADAM)
    descent.set(title="Adam on all data, to a stationary point", xlabel="step")
    batches.axhline(fisher.mean(), label="diag $F$", **_look("NGD"))
    batches.axhline(empirical.mean(), label="diag $E$", **_look("EF"))
    sizes = result.batches[:-1]
    moment = {**_ADAM, "marker": "o", "linestyle": ""}
    batches.plot(sizes, result.moment[:-1], label="Adam's $v$", **moment)
    predicted = "$\\mathrm{diag}\\,E/B\\cdot(N-B)/(N-1)$"
    batches.plot(sizes, result.predicted[:-1], "k", linewidth=0.8, label=predicted)
    title = f"At $\\theta^*$, by batch size (at $B=N$: {result.moment[-1]:.0e})"
    batches.set_title(title, fontsize=10)
    batches.set_xlabel("batch size $B$")
    for axis in (descent, batches):
        axis.set(**_MOMENTS)
        axis.legend(loc="lower left")
    return page


@_paper
def optimisation(results: Mapping[str, tuple[tuple[Grid, ...], np.ndarray]]) -> Any:
    """Figure 3: losses above, cos(NGD, EFGD) along the EFGD run below.

    Args:
        results: data set -> (tuned methods, cosines).
    """
    count = len(results)
    page, axes = _page(4 * count, 6, 2, count, height_ratios=(3, 1.4), sharex="col")
    columns = zip(axes.T, results.items(), strict=True)
    for (above, below), (name, (grids, cosines)) in columns:
        for grid in grids:
            best, colour = grid.best, _COLOURS[grid.method]
            mark = ", CHAOTIC" if best.chaotic else ""
            label = f"{grid.method}: {_setting(best)}{mark}"
            above.plot(best.losses, label=label, **_look(grid.method))
            if best.chaotic and grid.steady is not None:
                label = f"{grid.method}, not chaotic: {_setting(grid.steady)}"
                thin = {"linewidth": 1.2, "alpha": 0.6}
                above.plot(grid.steady.losses, color=colour, label=label, **thin)
        above.set(title=name, yscale="log")
        below.axhline(0, color="black", linewidth=0.6)
        below.plot(cosines, ".", color=_COLOURS["EFGD"], markersize=3)
        below.set(ylim=(-1.05, 1.05), yticks=(-1, 0, 1), xlabel="iteration")
        handles, labels = above.get_legend_handles_labels()
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.35)}
        below.legend(handles, labels, **place)
    axes[0, 0].set_ylabel("loss (nats)")
    axes[1, 0].set_ylabel("cos(NGD, EFGD)\nalong EFGD")
    return page


@_paper
def grids(results: Mapping[str, Sequence[Grid]]) -> Any:
    """The last loss of every setting, and those that rounding decides.

    A row a data set, a column a method with a damping.
    """
    rows = {
        name: [grid for grid in tuned if len(grid.dampings) > 1]
        for name, tuned in results.items()
    }
    columns = max(map(len, rows.values()))
    page, axes = _page(5 * columns, 3.6 * len(rows), len(rows), columns)
    named = {}
    for line, (name, tuned) in zip(axes, rows.items(), strict=True):
        low = min(grid.last[np.isfinite(grid.last)].min() for grid in tuned)
        first = max(grid.best.losses[0] for grid in tuned)
        scale = require("matplotlib.colors").LogNorm(low, first)
        shown = [_map(*pair, scale) for pair in zip(line, tuned, strict=False)]
        for axis, grid in zip(line, tuned, strict=False):
            axis.set_title(f"{name}, {grid.method}")
            handles, labels = axis.get_legend_handles_labels()
            named |= dict(zip(labels, handles, strict=True))
        for axis in line[len(tuned) :]:
            axis.axis("off")
        page.colorbar(shown[-1], ax=list(line), label="last loss (nats)", extend="max")
    place = {"loc": "outside lower center", "ncols": len(named)}
    page.legend(named.values(), named.keys(), **place)
    return page


@_paper
def starting_points(results: Mapping[str, StartingPoints]) -> Any:
    """Tuned methods from other starting points: a panel a data set."""
    page, (axes,) = _page(5 * len(results), 3.6, 1, len(results))
    for axis, (name, result) in zip(axes, results.items(), strict=True):
        for method, losses in result.losses.items():
            lines = axis.plot(losses, **_look(method))
            lines[0].set_label(f"{method}, tuned from 0")
        axis.axhline(result.least, color="black", linewidth=0.8, label="least loss")
        factors = ", ".join(f"{factor:g}" for factor in result.factors)
        title = f"{name}: started at {factors} of $\\theta^*$"
        axis.set(title=title, yscale="log", xlabel="iteration")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend()
    axes[0].set_ylabel("loss (nats)")
    return page


def _look(method: str) -> dict[str, str]:
    return {"color": _COLOURS[method], "linestyle": _LINES[method]}


def _field(axis: Any, result: VectorField, name: str, title: str) -> None:
    """Arrows and paths of one field over contours of the loss."""
    axis.contour(AXIS, AXIS, result.losses, 5, colors="black", alpha=0.3)
    heads = {"width": 0.005, "headwidth": 4, "headlength": 3, "color": "#999999"}
    arrows = np.moveaxis(result.arrows[name], -1, 0)
    axis.quiver(AXIS, AXIS, *arrows, angles="xy", scale=30, **heads)
    for path in result.paths[name]:
        shown = path[np.unique(np.geomspace(1, len(path), 2000).astype(int)) - 1]
        colour = _COLOURS.get(name, _ADAM["color"])
        axis.plot(*shown.T, color=colour, linewidth=2.5, alpha=0.9)
        axis.plot(*path[0], "hk", markersize=6)
    axis.plot(*result.minimum, "*k", markersize=11)
    window = (AXIS[0], AXIS[-1])
    axis.set(title=title, xlim=window, ylim=window, xlabel="bias", ylabel="slope")
    axis.set(xticks=[-1, 2, 5], yticks=[-1, 2, 5], box_aspect=1)
    axis.spines[:].set_visible(True)


def _data(axis: Any, case: Case) -> None:
    features, targets = map(np.asarray, (case.problem.features, case.problem.targets))
    style = {"linestyle": "", "markersize": 3, "alpha": 0.5}
    if set(targets) == {0.0, 1.0}:
        for label, marker in ((0, "^"), (1, "x")):
            look = {**style, "marker": marker, "color": _CLASSES[label]}
            axis.plot(*features[targets == label].T, **look)
        axis.set(xlim=(-9, 9), ylim=(-9, 9), xlabel="$x_1$", ylabel="$x_2$")
    else:
        axis.plot(features[:, 0], targets, marker=".", color=_CLASSES[0], **style)
        ends = np.array([-4.0, 4.0])
        axis.plot(ends, case.minimum[0] * ends + case.minimum[1], "k--")
        axis.set(xlim=(-4, 4), ylim=(-6, 10), xlabel="$x$", ylabel="$y$")
    axis.set_box_aspect(1)


def _contours(axis: Any, case: Case) -> None:
    """The loss around its minimum, wide enough for both ellipses."""
    outlines = [case.ellipse(case.fisher), case.ellipse(case.empirical)]
    reach = 1.15 * np.max(np.abs(np.concatenate(outlines) - case.minimum))
    first, second = (np.linspace(c - reach, c + reach, 50) for c in case.minimum)
    axis.contour(first, second, case.losses(first, second), 4, colors=_GREY)
    axis.plot([], [], color=_GREY, label="loss")
    axis.plot(*case.minimum, "*k", markersize=9, linestyle="", label="minimum")
    axis.set(xlim=(first[0], first[-1]), ylim=(second[0], second[-1]), box_aspect=1)
    axis.set(xlabel="$\\theta_1$", ylabel="$\\theta_2$")
    axis.locator_params(nbins=4)
    axis.spines[:].set_visible(True)


def _ellipse(axis: Any, case: Case, matrix: np.ndarray, label: str, look) -> None:
    axis.plot(*case.ellipse(matrix).T, label=label, **look)


def _map(axis: Any, grid: Grid, scale: Any) -> Any:
    """Losses over (λ, η), the chaotic settings, and the best ones."""
    colours = require("matplotlib").colormaps["viridis_r"].with_extremes(over="#EEEEEE")
    last = np.where(np.isfinite(grid.last), grid.last, 1e300)
    how = {"norm": scale, "cmap": colours, "shading": "nearest"}
    shown = axis.pcolormesh(grid.dampings, grid.rates, last, **how)
    rate, damping = np.nonzero(grid.spread > CHAOTIC)
    places = grid.dampings[damping], grid.rates[rate]
    dots = {"color": "#D55E00", "markersize": 3, "label": "chaotic: rounding decides"}
    axis.plot(*places, ".", **dots)
    best, steady = grid.best, grid.steady
    star = {"markersize": 11, "linestyle": "", "label": "smallest last loss"}
    axis.plot(best.damping, best.rate, "*k", **star)
    if best.chaotic and steady is not None:
        cross = {"color": "white", "markeredgecolor": "black", "markersize": 8}
        label = "best that is not chaotic"
        axis.plot(steady.damping, steady.rate, "P", linestyle="", label=label, **cross)
    # At lower learning rates nothing moves.
    axis.set(xscale="log", yscale="log", ylim=(1e-8, 1e10))
    axis.set(xlabel="damping λ", ylabel="learning rate η")
    return shown


def _setting(run: Run) -> str:
    """η and λ as powers of ten."""
    rate = f"$\\eta=10^{{{math.log10(run.rate):.4g}}}$"
    if math.isnan(run.damping):
        return rate
    return f"{rate}, $\\lambda=10^{{{math.log10(run.damping):.4g}}}$"

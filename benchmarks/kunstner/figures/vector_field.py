"""Figure 1: data, and the fields of gradient, natural and empirical descent."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.kunstner.figures.style import CLASSES, COLOURS, figure, framed, paper
from benchmarks.kunstner.vector_field import AXIS, VectorField

_TITLES = {
    "GD": "Gradient descent",
    "NGD": "Natural gradient",
    "EF": "Empirical Fisher",
}


@paper
def vector_field(result: VectorField) -> Any:
    """Four panels: the data, and one field each with paths over loss contours."""
    page = figure(12, 3.4)
    axes = page.subplots(1, 1 + len(_TITLES))
    _data(axes[0], result)
    for axis, (name, title) in zip(axes[1:], _TITLES.items(), strict=True):
        field(axis, result, name, COLOURS[name])
        axis.set_title(title)
    return page


def field(axis: Any, result: VectorField, name: str, colour: str) -> None:
    """Arrows and paths of one field over contours of the loss."""
    axis.contour(AXIS, AXIS, result.losses, 5, colors="black", alpha=0.3)
    arrows = result.arrows[name]
    axis.quiver(
        AXIS,
        AXIS,
        arrows[..., 0],
        arrows[..., 1],
        angles="xy",
        scale=30,
        color="#999999",
        width=0.005,
        headwidth=4,
        headlength=3,
    )
    for path in result.paths[name]:
        thin = path[np.unique(np.geomspace(1, len(path), 2000).astype(int)) - 1]
        axis.plot(thin[:, 0], thin[:, 1], color=colour, linewidth=2.5, alpha=0.9)
        axis.plot(*path[0], "h", color="black", markersize=6)
    axis.plot(*result.minimum, "*", color="black", markersize=11)
    axis.set(
        xlim=(AXIS[0], AXIS[-1]),
        ylim=(AXIS[0], AXIS[-1]),
        xticks=[-1, 2, 5],
        yticks=[-1, 2, 5],
        xlabel="bias",
        ylabel="slope",
        box_aspect=1,
    )
    framed(axis)


def _data(axis: Any, result: VectorField) -> None:
    problem, (bias, slope) = result.problem, result.minimum
    x = np.asarray(problem.features)[:, 1]
    axis.plot(x, problem.targets, ".", color=CLASSES[0], markersize=3, alpha=0.5)
    ends = np.array([0.0, 9.0])
    axis.plot(ends, bias + slope * ends, "k--", linewidth=2, label="fit at $\\theta^*$")
    axis.set(
        title="Data",
        xlim=(-1, 10),
        ylim=(-2, 22),
        xlabel="$x$",
        ylabel="$y$",
        box_aspect=1,
    )
    axis.legend(loc="upper left")

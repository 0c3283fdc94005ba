"""Figure 2: data above, ellipses of the two matrices below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.kunstner.figures.style import (
    CLASSES,
    COLOURS,
    GREY,
    LINES,
    figure,
    framed,
    paper,
)
from benchmarks.kunstner.misspecification import Case


@paper
def misspecification(cases: Sequence[Case]) -> Any:
    """A column each: the data, and what F and E make of the loss at its minimum."""
    page = figure(10, 6.2)
    axes = page.subplots(2, len(cases), squeeze=False)
    for (above, below), case in zip(axes.T, cases, strict=True):
        _data(above, case)
        above.set_title(case.name[0].upper() + case.name[1:])
        low, high = case.ratios
        below.set_title(
            f"eigenvalues of $F^{{-1}}E$: {low:.2f}, {high:.2f}", fontsize=9
        )
        contours(below, case)
        for name, label, matrix in (
            ("NGD", "Fisher $F$", case.fisher),
            ("EF", "empirical Fisher $E$", case.empirical),
        ):
            ellipse(below, case.ellipse(matrix), name, label)
    axes[0, 0].set_ylabel(f"data\n{axes[0, 0].get_ylabel()}")
    axes[1, 0].set_ylabel(f"quadratic model\n{axes[1, 0].get_ylabel()}")
    handles, labels = axes[1, 0].get_legend_handles_labels()
    page.legend(handles, labels, loc="outside lower center", ncols=len(handles))
    return page


def ellipse(axis: Any, points: np.ndarray, name: str, label: str) -> None:
    """One ellipse in the colour and line style of a method."""
    axis.plot(
        *points.T, color=COLOURS[name], linestyle=LINES[name], linewidth=2, label=label
    )


def contours(axis: Any, case: Case) -> None:
    """The loss around its minimum, wide enough for both ellipses."""
    outlines = [case.ellipse(case.fisher), case.ellipse(case.empirical)]
    reach = 1.15 * np.max(np.abs(np.concatenate(outlines) - case.minimum))
    first, second = (np.linspace(c - reach, c + reach, 50) for c in case.minimum)
    axis.contour(first, second, case.losses(first, second), 4, colors=GREY)
    axis.plot([], [], color=GREY, label="loss")
    axis.plot(*case.minimum, "*k", markersize=9, linestyle="", label="minimum")
    axis.set(
        xlim=(first[0], first[-1]),
        ylim=(second[0], second[-1]),
        xlabel="$\\theta_1$",
        ylabel="$\\theta_2$",
        box_aspect=1,
    )
    axis.locator_params(nbins=4)
    framed(axis)


def _data(axis: Any, case: Case) -> None:
    features, targets = (
        np.asarray(a) for a in (case.problem.features, case.problem.targets)
    )
    style = {"linestyle": "", "markersize": 3, "alpha": 0.5}
    if set(targets) == {0.0, 1.0}:
        for label, marker in ((0, "^"), (1, "x")):
            axis.plot(
                *features[targets == label].T,
                marker=marker,
                color=CLASSES[label],
                **style,
            )
        axis.set(xlim=(-9, 9), ylim=(-9, 9), xlabel="$x_1$", ylabel="$x_2$")
    else:
        axis.plot(features[:, 0], targets, marker=".", color=CLASSES[0], **style)
        ends = np.array([-4.0, 4.0])
        axis.plot(ends, case.minimum[0] * ends + case.minimum[1], "k--")
        axis.set(xlim=(-4, 4), ylim=(-6, 10), xlabel="$x$", ylabel="$y$")
    axis.set_box_aspect(1)

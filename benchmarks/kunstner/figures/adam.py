"""Adam is not the natural gradient: its fields, its ellipse, its second moment."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.kunstner.adam import Adam
from benchmarks.kunstner.figures.misspecification import contours, ellipse
from benchmarks.kunstner.figures.style import COLOURS, LINES, figure, paper
from benchmarks.kunstner.figures.vector_field import field
from benchmarks.kunstner.vector_field import ADAM_FIELDS, VectorField

_FISHER = {"color": COLOURS["NGD"], "linestyle": LINES["NGD"], "linewidth": 2}
_EMPIRICAL = {"color": COLOURS["EF"], "linestyle": LINES["EF"], "linewidth": 1.5}
_MOMENT = {"color": COLOURS["Adam"], "linewidth": 2}


@paper
def adam(fields: VectorField, result: Adam) -> Any:
    """Fields above; ellipses and the second moment below."""
    page = figure(11.5, 7.4)
    axes = page.subplots(2, 3)
    titles = {"NGD": "Natural gradient", **{name: name for name in ADAM_FIELDS}}
    for axis, (name, title) in zip(axes[0], titles.items(), strict=True):
        field(axis, fields, name, COLOURS.get(name, COLOURS["Adam"]))
        axis.set_title(title)
    _ellipses(axes[1, 0], result)
    _descent(axes[1, 1], result)
    _batches(axes[1, 2], result)
    return page


def _ellipses(axis: Any, result: Adam) -> None:
    case = result.case
    contours(axis, case)
    for name, label, matrix in (
        ("NGD", "$F$", case.fisher),
        ("GD", "diag $F$", np.diag(np.diag(case.fisher))),
        ("Adam", "diag $E$: Adam's $v$, $B=1$", np.diag(np.diag(case.empirical))),
    ):
        ellipse(axis, case.ellipse(matrix), name, label)
    axis.set_title(f"Quadratic models at $\\theta^*$\n({case.name})", fontsize=10)
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=8)


def _descent(axis: Any, result: Adam) -> None:
    axis.plot(result.steps, result.descent_fisher, label="diag $F$", **_FISHER)
    axis.plot(result.steps, result.descent_moment, label="Adam's $v$", **_MOMENT)
    axis.set(
        title="Adam on all data, to a stationary point",
        xscale="log",
        yscale="log",
        xlabel="step",
        ylabel="mean over coordinates",
        box_aspect=1,
    )
    axis.legend(loc="lower left")


def _batches(axis: Any, result: Adam) -> None:
    sizes, case = result.batches, result.case
    axis.axhline(np.mean(np.diag(case.fisher)), label="diag $F$", **_FISHER)
    axis.axhline(np.mean(np.diag(case.empirical)), label="diag $E$", **_EMPIRICAL)
    axis.plot(sizes[:-1], result.moment[:-1], "o", label="Adam's $v$", **_MOMENT)
    axis.plot(
        sizes[:-1],
        result.predicted[:-1],
        color="black",
        linewidth=0.8,
        label="$\\mathrm{diag}\\,E/B\\cdot(N-B)/(N-1)$",
    )
    axis.set(
        title=f"At $\\theta^*$, by batch size (at $B=N$: {result.moment[-1]:.0e})",
        xscale="log",
        yscale="log",
        xlabel="batch size $B$",
        ylabel="mean over coordinates",
        box_aspect=1,
    )
    axis.title.set_fontsize(10)
    axis.legend(loc="lower left")

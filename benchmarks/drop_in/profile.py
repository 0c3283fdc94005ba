"""Performance profiles: on how many problems is an optimizer near the best?

An optimizer reaches a problem's goal, the last loss of tuned Adam, at its first look at
or below it, after t steps or CPU seconds; infinity where it never does. With b the
least t of all optimizers on that problem,

    profile(τ) = the share of problems with t <= τ b.

Adam and the other tuned ones have the rate with the lowest last loss; those of this
library are as they come.

Source: Dolan & Moré (2002), Benchmarking optimization software with performance
profiles, Mathematical Programming 91.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.drop_in.card import Sheet, cells_of, last
from benchmarks.drop_in.running import EVERY, NATURAL, SHOWN_RATE, TUNED, Cell
from benchmarks.report import table

NEAR = 1.5  # times the best
FARTHEST = 10.0  # τ of the picture


class Measure(NamedTuple):
    """What reaching the goal costs.

    Attributes:
        title: with its unit.
        cost: (cell, steps) -> a number.
    """

    title: str
    cost: Callable[[Cell, float], float]


def seconds(cell: Cell, steps: float) -> float:
    """CPU seconds of so many steps, without compilation."""
    return math.inf if cell.step_seconds is None else steps * cell.step_seconds


def seconds_in_all(cell: Cell, steps: float) -> float:
    """CPU seconds of so many steps, with trace, compilation and first step."""
    return (cell.first[1] if cell.first else math.inf) + seconds(cell, steps)


def steps_alone(cell: Cell, steps: float) -> float:
    """So many."""
    del cell
    return steps


MEASURES = (
    Measure("steps", steps_alone),
    Measure("CPU seconds", seconds),
    Measure("CPU seconds with compilation", seconds_in_all),
)


def steps_to(cell: Cell, goal: float) -> float:
    """Steps to the first look at or below the goal; infinity where there is none."""
    for look, loss in enumerate(cell.loss):
        if loss <= goal:
            return min(look * EVERY, cell.steps)
    return math.inf


def contender(sheet: Sheet, name: str, batch: int) -> Cell | None:
    """A tuned optimizer's best cell, or the one of another as it comes."""
    if name in TUNED:
        return sheet.best(name, batch, 1)
    cells = cells_of(sheet, name, batch, 0.0)
    return next((cell for cell in cells if cell.rate in (SHOWN_RATE, None)), None)


def largest_batch(found: dict[str, Sheet]) -> int:
    """The largest batches that something ran with."""
    return max(cell.batch for sheet in found.values() for cell in sheet.cells.values())


def costs(
    found: dict[str, Sheet], batch: int, measure: Measure
) -> dict[str, np.ndarray]:
    """Optimizer -> what it needs on each problem; NaN where it did not run.

    Args:
        found: sheets by problem; those without Adam are left out.
        batch: size of a batch.
        measure: of the cost.
    """
    goals = [(s, s.best("adam", batch, 1)) for s in found.values()]
    of_name: dict[str, np.ndarray] = {}
    for name in (*TUNED, *NATURAL):
        row = []
        for sheet, adam in goals:
            cell = adam and contender(sheet, name, batch)
            if cell:
                row.append(measure.cost(cell, steps_to(cell, last(adam))))
            elif adam:
                row.append(math.nan)
        if not np.all(np.isnan(row)):
            of_name[name] = np.array(row)
    return of_name


def over_best(costs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Optimizer -> cost over the least of all on the same problem, without NaN."""
    least = np.nanmin(np.stack([*costs.values()]), axis=0)
    return {name: (row / least)[~np.isnan(row)] for name, row in costs.items()}


def summary(found: dict[str, Sheet], batch: int) -> str:
    """By optimizer: problems, goals reached, where it is the best and near the best."""
    ratios = [over_best(costs(found, batch, measure)) for measure in MEASURES]
    rows = []
    for name in ratios[0]:
        row = [
            f"`{name}`",
            len(ratios[0][name]),
            int(np.isfinite(ratios[0][name]).sum()),
        ]
        for of_measure in ratios:
            row += [int((of_measure[name] <= bound).sum()) for bound in (1, NEAR)]
        rows.append(row)
    pairs = (
        f"{what} in {m.title}" for m in MEASURES for what in ("best", f"within {NEAR}")
    )
    return table(("optimizer", "problems", "reached", *pairs), rows)


def picture(found: dict[str, Sheet], batch: int) -> Figure:
    """A panel for each measure: share of problems over τ."""
    figure = Figure(figsize=(9.5, 3.6), layout="constrained")
    axes = figure.subplots(1, len(MEASURES), sharey=True)
    bounds, colours = np.geomspace(1, FARTHEST, 200), colormaps["tab20"].colors
    for axis, measure in zip(axes, MEASURES, strict=True):
        for number, (name, ratios) in enumerate(
            over_best(costs(found, batch, measure)).items()
        ):
            shares = [np.mean(ratios <= bound) for bound in bounds]
            style = "--" if name in TUNED else "-"
            axis.step(
                bounds, shares, style, where="post", label=name, color=colours[number]
            )
        axis.set(xscale="log", xlim=(1, FARTHEST), ylim=(0, 1), xlabel="times the best")
        axis.set_title(measure.title, fontsize=9)
        axis.set_xticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        axis.minorticks_off()
    axes[0].set_ylabel("share of problems")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=6, fontsize=7, frameon=False
    )
    return figure

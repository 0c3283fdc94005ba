"""Performance profiles: on how many problems is an optimizer near the best?

With t what an optimizer needs to reach a problem's goal, infinity where it never does,
and b the least t of all optimizers on that problem,

    profile(τ) = the share of problems with t <= τ b.

Source: Dolan & Moré (2002), Benchmarking optimization software with performance
profiles, Mathematical Programming 91.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import table

NEAR = 1.5  # times the best
FARTHEST = 10.0  # τ of the picture

# Optimizer -> what it needs on each problem; NaN where it did not run.
Costs = dict[str, np.ndarray]


def over_best(costs: Costs) -> Costs:
    """Cost over the least of all on the same problem; NaN where it did not run.

    Infinite where the goal was not reached.
    """
    least = np.nanmin(np.stack([*costs.values()]), axis=0)
    with np.errstate(invalid="ignore"):  # a goal that nobody reached
        ratios = {name: row / least for name, row in costs.items()}
    return {
        name: np.where(np.isinf(costs[name]), np.inf, ratio)
        for name, ratio in ratios.items()
    }


def together(costs: Costs, names: Iterable[str]) -> np.ndarray:
    """What the best of several needs on each problem; infinity where none ran."""
    rows = [costs[name] for name in names if name in costs]
    if not rows:
        return np.full(len(next(iter(costs.values()))), np.inf)
    return np.min(np.where(np.isnan(rows), np.inf, rows), axis=0)


def summary(by_measure: dict[str, Costs]) -> str:
    """By optimizer: problems, goals reached, where it is the best and near the best."""
    ratios = [over_best(costs) for costs in by_measure.values()]
    rows = []
    for name, first in ratios[0].items():
        row = [
            f"`{name}`",
            int((~np.isnan(first)).sum()),
            int(np.isfinite(first).sum()),
        ]
        for of_measure in ratios:
            row += [int((of_measure[name] <= bound).sum()) for bound in (1, NEAR)]
        rows.append(row)
    pairs = (f"{w} in {m}" for m in by_measure for w in ("best", f"within {NEAR}"))
    return table(("optimizer", "problems", "reached", *pairs), rows)


def of_group(by_measure: dict[str, Costs], names: Iterable[str]) -> str:
    """By measure: on how many problems the best of a group is the best of all."""
    rows = []
    for measure, costs in by_measure.items():
        ours, all_of_them = together(costs, names), together(costs, costs)
        reached = np.isfinite(ours)
        with np.errstate(invalid="ignore"):
            times = np.where(reached, ours / all_of_them, np.inf)
        counts = (int((times <= bound).sum()) for bound in (1, NEAR))
        rows.append((measure, *counts, int(reached.sum()), len(times)))
    heads = ("measure", "best", f"within {NEAR} of the best", "reached", "problems")
    return table(heads, rows)


def picture(
    by_measure: dict[str, Costs], ours: Iterable[str], colours: dict[str, str]
) -> Figure:
    """A panel for each measure: share of problems over τ; ours are solid lines."""
    figure = Figure(figsize=(7, 6.6), layout="constrained")
    axes = np.ravel(figure.subplots(2, 2, sharey=True))
    bounds = np.geomspace(1, FARTHEST, 200)
    for axis, (measure, costs) in zip(axes, by_measure.items(), strict=False):
        for name, row in over_best(costs).items():
            ratios = row[~np.isnan(row)]
            shares = [np.mean(ratios <= bound) for bound in bounds]
            style = {"linestyle": "-" if name in ours else "--", "where": "post"}
            axis.step(bounds, shares, label=name, color=colours[name], **style)
        axis.set(xscale="log", xlim=(1, FARTHEST), ylim=(0, 1), xlabel="times the best")
        axis.set_title(measure, fontsize=9)
        axis.set_xticks([1, 1.5, 2, 3, 5, 10], ["1", "1.5", "2", "3", "5", "10"])
        axis.minorticks_off()
    for axis in axes[::2]:
        axis.set_ylabel("share of problems")
    handles, labels = axes[0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend(handles, labels, fontsize=8, **place)
    return figure

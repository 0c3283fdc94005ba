"""Pictures of races: losses over steps and CPU seconds, training and held out."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.optimizers import OPTIMIZERS, OURS, PEERS

CLOCKS = {"step": "steps", "cpu": "CPU seconds"}
KINDS = {"loss": "training loss", "held": "held-out loss"}
# Strong colours are this library's.
STRONG = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")
LIGHT = ("#7f7f7f", "#c49c94", "#e7ba52", "#8ca252", "#e377c2", "#9edae5", "#c7c7c7")
LIGHT += ("#f7b6d2", "#ad494a", "#637939")
OTHERS = [name for name in (*OPTIMIZERS, *PEERS) if name not in (*OURS, "adam")]
COLOURS = dict(zip(OURS, STRONG, strict=True)) | dict(zip(OTHERS, LIGHT, strict=False))
COLOURS["adam"] = "black"


def figure(found: dict[str, Any]) -> Figure:
    """Medians over seeds, and bands between quartiles; ours are solid lines.

    Args:
        found: the record of a problem, with its goal.
    """
    kinds = KINDS if found["held_out"] else {"loss": KINDS["loss"]}
    drawn = Figure(figsize=(7, 1 + 2.5 * len(kinds)), layout="constrained")
    axes = drawn.subplots(len(kinds), 2, sharex="col", sharey="row", squeeze=False)
    entries = {n: e for n, e in found["optimizers"].items() if e["runs"]}
    for row, kind in zip(axes, kinds, strict=True):
        for axis, clock in zip(row, CLOCKS, strict=True):
            for name, entry in entries.items():
                draw(axis, name, entry["runs"], clock, kind, found["constant"])
            axis.set_xscale("log")
        limit(row[0], [e["runs"] for e in entries.values()], kind, found)
        row[0].set_ylabel(KINDS[kind])
        if kind == "loss":
            for axis in row:
                goal = found["goal"] - found["constant"]
                axis.axhline(goal, color="black", linestyle=":", linewidth=1)
    for axis, label in zip(axes[-1], CLOCKS.values(), strict=True):
        axis.set_xlabel(label)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    place = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    drawn.legend(handles, labels, fontsize=8, **place)
    return drawn


def draw(axis, name: str, runs, clock: str, kind: str, constant: float) -> None:
    length = min(len(run["loss"]) for run in runs)
    times = np.median([run[clock][:length] for run in runs], axis=0)[1:]
    losses = np.array([run[kind][:length] for run in runs], float)[:, 1:] - constant
    if length < 2:
        return
    losses = np.where(np.isfinite(losses), losses, np.nan)
    low, middle, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
    style = "-" if name in OURS else "--"
    width = 1.6 if name in OURS or name == "adam" else 1
    colour = COLOURS[name]
    axis.plot(times, middle, style, color=colour, label=name, linewidth=width)
    axis.fill_between(times, low, high, alpha=0.12, color=colour, linewidth=0)


def limit(axis, runs, kind: str, found: dict[str, Any]) -> None:
    """Up to the first loss; a logarithmic axis where no loss is negative."""
    losses = np.array([v for some in runs for run in some for v in run[kind]], float)
    losses = losses[np.isfinite(losses)] - found["constant"]
    start = max(run[kind][0] for some in runs for run in some) - found["constant"]
    low, high = losses.min(), min(losses.max(), start + 0.1 * abs(start))
    if low > 0:
        axis.set_yscale("log")
        axis.set_ylim(max(low, high * 1e-6) / 1.2, high * 1.2)
    elif high > low:
        axis.set_ylim(low - 0.05 * (high - low), high)

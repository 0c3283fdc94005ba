"""Figures along a run: where each approximation breaks down."""

from __future__ import annotations

from typing import Any

import numpy as np

from natgrad.compare.plots.style import open_figure, styles
from natgrad.compare.trace import Trace


def along(trace: Trace) -> Any:
    """Cosine and length of the step, error of the matrix, and loss, by step."""
    first = trace.comparisons[0]
    figure = open_figure(
        f"Along training: {first.parameters} parameters, {first.examples} examples, "
        f"damping λ = {first.damping:g}",
        (13, 7.6),
    )
    axes = figure.subplots(2, 2, sharex=True)
    look = styles(trace.names)
    _series(axes[0, 0], trace, "step_cosine", look)
    axes[0, 0].axhline(0, color="black", linewidth=0.9)
    axes[0, 0].set(
        title="Direction of the step",
        ylabel="cosine with the natural step (1 is exact)",
    )
    _series(axes[0, 1], trace, "step_norm_ratio", look, log=True)
    axes[0, 1].axhline(1, color="black", linewidth=0.9)
    axes[0, 1].set(title="Length of the step", ylabel="length over the natural step's")
    _series(axes[1, 0], trace, "relative_error", look, log=True, floor=1e-7)
    axes[1, 0].set(
        title="Error of the matrix", ylabel="‖A − F‖ / ‖F‖, Frobenius", xlabel="step"
    )
    _training(axes[1, 1], trace)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=10)
    return figure


def _series(
    axis: Any, trace: Trace, name: str, look: dict, log: bool = False, floor: float = 0
) -> None:
    for approximation in trace.names:
        values = np.maximum(trace.series(approximation, name), floor or -np.inf)
        style = {"linewidth": 1.7, "markersize": 5, **look[approximation]}
        axis.plot(trace.steps, values, label=approximation, **style)
    if log:
        axis.set_yscale("log")
    axis.grid(alpha=0.3)


def _training(axis: Any, trace: Trace) -> None:
    """The loss, and how many times too large the empirical Fisher is."""
    axis.plot(trace.steps, trace.losses, "-o", color="black", markersize=4)
    axis.set(title="Loss, and the labels' verdict", xlabel="step")
    axis.set_ylabel("loss (nats an example, ●)")
    axis.grid(alpha=0.3)
    beside = axis.twinx()
    ratios = [c.misspecification.trace_ratio for c in trace.comparisons]
    beside.plot(trace.steps, ratios, "--s", color="#D55E00", markersize=4)
    beside.axhline(1, color="#D55E00", linewidth=0.8, alpha=0.6)
    beside.set_ylabel("tr empirical / tr true Fisher (■)", color="#D55E00")

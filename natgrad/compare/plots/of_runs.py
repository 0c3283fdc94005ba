"""Pictures of runs: a race, repetitions of it, and a comparison along a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from natgrad.compare.plots import style
from natgrad.compare.plots.style import COLOURS, log_if_wide, look
from natgrad.compare.runs import Race, Repeated
from natgrad.compare.trace import Trace

_NATS = "nats an example"
# Panels of `along`: figure of a row, title, unit, where exact is, logarithmic?
_ALONG = (
    ("step_cosine", "Direction of the step", "cosine with the natural step", 0, False),
    ("step_norm_ratio", "Length of the step", "over the natural step's", 1, True),
    ("relative_error", "Error of the matrix", "‖A − F‖ / ‖F‖, Frobenius", None, True),
)
_FLOOR = 1e-7


@style.plain
def training(race: Race, *, title: str = "Training", score: str = "score") -> Any:
    """Curves of each optimizer's best run, and how it depends on the rate.

    Args:
        race: what is drawn.
        title: what was trained on what; steps and batch size are said after it.
        score: what the test score is.
    """
    figure, axes = style.panels(
        f"{title}, {race.steps} steps of {race.batch_size} examples, each optimizer "
        "at its best learning rate",
        (2, 3),
    )
    bests = {i: entry.best for i, entry in enumerate(race.entries) if entry.best}
    looks = {i: {**look(i), "markevery": max(1, race.steps // 8)} for i in bests}
    for axis, name, what, unit in (
        (axes[0, 0], "train_loss", "Training loss", _NATS),
        (axes[1, 0], "test_loss", "Test loss", _NATS),
        (axes[1, 1], "score", "Test score", score),
    ):
        curves = {i: getattr(run, name) for i, run in bests.items()}
        for index, curve in curves.items():
            axis.plot(curve, **looks[index])
        axis.set(title=f"{what} by step", xlabel="step", ylabel=unit)
        if unit == _NATS:
            log_if_wide(axis, list(curves.values()))
    by_time, title = axes[0, 1], "Training loss by time, from the first step on"
    for index, run in bests.items():
        by_time.plot(run.seconds[1:], run.train_loss[1:], **looks[index])
    log_if_wide(by_time, [run.train_loss[1:] for run in bests.values()])
    by_time.set(title=title, xlabel="seconds, compiling left out", ylabel=_NATS)
    by_time.set_xscale("log")
    _sensitivity(axes[0, 2], race)
    for index, entry in enumerate(race.entries):
        rate = (
            f"rate {entry.best.learning_rate:g}" if entry.best else "every run failed"
        )
        label = f"{entry.name}: {rate}{' (edge of its grid)' * entry.on_edge}"
        axes[1, 2].plot([], [], label=label, **look(index))
    axes[1, 2].axis("off")
    axes[1, 2].legend(loc="center", fontsize=11, frameon=False)
    return figure


@style.plain
def bands(repeated: Sequence[Repeated], title: str = "Training") -> Any:
    """Medians and quartiles of training and test loss, by step and by second."""
    count = min(len(each.runs) for each in repeated)
    figure, axes = style.panels(
        f"{title}: median and quartiles of {count} runs at each best learning rate",
        (2, 2),
        (13, 7.6),
        sharey="row",
    )
    losses = {"train_loss": "Training loss", "test_loss": "Test loss"}
    for (by_step, by_second), (name, what) in zip(axes, losses.items(), strict=True):
        for index, each in enumerate(repeated):
            low, middle, high = each.quartiles(name)
            label = f"{each.name} (η = {each.learning_rate:g})"
            how = {**look(index), "markevery": max(1, len(middle) // 6)}
            steps, seconds = np.arange(len(middle)), each.quartiles("seconds")[1]
            for axis, across, first in ((by_step, steps, 0), (by_second, seconds, 1)):
                axis.plot(across[first:], middle[first:], label=label, **how)
                band = (across[first:], low[first:], high[first:])
                axis.fill_between(*band, color=how["color"], alpha=0.18)
        log_if_wide(by_step, [each.quartiles(name)[1] for each in repeated])
        by_step.xaxis.get_major_locator().set_params(integer=True)
        by_step.set(title=f"{what} by step", ylabel=_NATS)
        by_second.set(title=f"{what} by second", xscale="log")
    axes[1, 0].set_xlabel("step")
    axes[1, 1].set_xlabel("seconds of training (median), compiling left out")
    style.legend_beside(figure, axes[0, 0])
    return figure


@style.plain
def along(trace: Trace) -> Any:
    """Cosine and length of the step, error of the matrix, and loss, by step."""
    first = trace.comparisons[0]
    figure, axes = style.panels(
        f"Along training: {first.parameters} parameters, {first.examples} examples, "
        f"damping λ = {first.damping:g}",
        (2, 2),
        (13, 7.6),
        sharex=True,
    )
    for axis, (name, title, unit, exact, log) in zip(axes.flat, _ALONG, strict=False):
        for index, approximation in enumerate(trace.names):
            values = trace.series(approximation, name)
            values = np.maximum(values, _FLOOR) if log else values
            axis.plot(trace.steps, values, label=approximation, **look(index))
        if exact is not None:
            axis.axhline(exact, color="black", linewidth=0.9)
        axis.set(title=title, ylabel=unit, yscale="log" if log else "linear")
    loss, labels = axes[1, 1], axes[1, 1].twinx()
    loss.plot(trace.steps, trace.losses, "-o", color="black", markersize=4)
    loss.set(title="Loss, and the labels' verdict", ylabel="loss (nats an example, ●)")
    ratios = [c.misspecification.trace_ratio for c in trace.comparisons]
    labels.plot(trace.steps, ratios, "--s", color=COLOURS[1], markersize=4)
    labels.axhline(1, color=COLOURS[1], linewidth=0.8, alpha=0.6)
    labels.set_ylabel("tr empirical / tr true Fisher (■)", color=COLOURS[1])
    labels.grid(visible=False)
    for axis in axes[1]:
        axis.set_xlabel("step")
    style.legend_beside(figure, axes[0, 0])
    return figure


def _sensitivity(axis: Any, race: Race) -> None:
    """Final training loss by learning rate; failed runs on the upper edge."""
    fit = [[run for run in entry.runs if not run.failed] for entry in race.entries]
    losses = [run.final_train_loss for runs in fit for run in runs]
    top = max(losses, default=1.0) * 1.15
    for index, (entry, runs) in enumerate(zip(race.entries, fit, strict=True)):
        rates = [run.learning_rate for run in runs]
        axis.plot(rates, [run.final_train_loss for run in runs], **look(index))
        shift = 1 + 0.06 * (index - len(race.entries) / 2)
        failed = [run.learning_rate * shift for run in entry.failed]
        colour = look(index)["color"]
        axis.plot(failed, [top] * len(failed), "x", color=colour, markeredgewidth=2)
    log_if_wide(axis, losses)
    axis.set(
        xscale="log",
        title="Final training loss by learning rate (× failed)",
        xlabel="learning rate",
        ylabel=_NATS,
    )

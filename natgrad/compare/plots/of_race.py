"""The picture of a race: curves of the best runs, and all final losses by rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from natgrad.compare.plots.style import (
    COLOURS,
    LINES,
    MARKERS,
    WIDE,
    open_figure,
)
from natgrad.compare.runs import Entry, Race, Run


def training(race: Race, *, title: str = "Training", score: str = "score") -> Any:
    """Curves of each optimizer's best run, and how it depends on the rate.

    Args:
        race: what is drawn.
        title: what was trained on what; steps and batch size are said after it.
        score: what the test score is.
    """
    figure = open_figure(
        f"{title}, {race.steps} steps of {race.batch_size} examples, each optimizer "
        "at its best learning rate"
    )
    axes = figure.subplots(2, 3)
    steps = lambda run: range(len(run.train_loss))
    train = lambda run: run.train_loss
    _curves(axes[0, 0], race, "Training loss by step", steps, train)
    axes[0, 0].set(xlabel="step", ylabel="nats an example")
    _curves(
        axes[0, 1],
        race,
        "Training loss by time, from the first step on",
        lambda run: run.seconds[1:],
        lambda run: run.train_loss[1:],
    )
    axes[0, 1].set(xlabel="seconds, compiling left out", ylabel="nats an example")
    axes[0, 1].set_xscale("log")
    _curves(axes[1, 0], race, "Test loss by step", steps, lambda run: run.test_loss)
    axes[1, 0].set(xlabel="step", ylabel="nats an example")
    _curves(
        axes[1, 1], race, "Test score by step", steps, lambda run: run.score, log=False
    )
    axes[1, 1].set(xlabel="step", ylabel=score)
    _sensitivity(axes[0, 2], race)
    _key(axes[1, 2], race)
    return figure


def _style(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index % len(LINES)],
        "linewidth": 1.8,
    }


def _curves(
    axis: Any,
    race: Race,
    title: str,
    abscissa: Callable[[Run], Sequence[float]],
    ordinate: Callable[[Run], Sequence[float]],
    log: bool = True,
) -> None:
    lowest, highest = math.inf, -math.inf
    for index, entry in enumerate(race.entries):
        if entry.best is not None:
            values = ordinate(entry.best)
            axis.plot(abscissa(entry.best), values, **_style(index))
            lowest, highest = min([lowest, *values]), max([highest, *values])
    if lowest > 0 and highest > WIDE * lowest and log:
        axis.set_yscale("log")
    axis.set_title(title)
    axis.grid(alpha=0.3)


def _sensitivity(axis: Any, race: Race) -> None:
    """Final training loss by learning rate; failed runs on the upper edge."""
    fit = [
        run.final_train_loss
        for entry in race.entries
        for run in entry.runs
        if not run.failed
    ]
    top = max(fit, default=1.0) * 1.15
    for index, entry in enumerate(race.entries):
        runs = [run for run in entry.runs if not run.failed]
        axis.plot(
            [run.learning_rate for run in runs],
            [run.final_train_loss for run in runs],
            marker=MARKERS[index % len(MARKERS)],
            **_style(index),
        )
        shift = 1 + 0.06 * (index - len(race.entries) / 2)
        axis.plot(
            [run.learning_rate * shift for run in entry.failed],
            [top] * len(entry.failed),
            "x",
            color=COLOURS[index % len(COLOURS)],
            markeredgewidth=2,
        )
    axis.set_xscale("log")
    if fit and min(fit) > 0 and max(fit) > WIDE * min(fit):
        axis.set_yscale("log")
    axis.set(
        title="Final training loss by learning rate (× failed)",
        xlabel="learning rate",
        ylabel="nats an example",
    )
    axis.grid(alpha=0.3)


def _key(axis: Any, race: Race) -> None:
    """The legend of all panels."""
    for index, entry in enumerate(race.entries):
        axis.plot(
            [],
            [],
            marker=MARKERS[index % len(MARKERS)],
            label=_label(entry),
            **_style(index),
        )
    axis.axis("off")
    axis.legend(loc="center", fontsize=11, frameon=False)


def _label(entry: Entry) -> str:
    if entry.best is None:
        return f"{entry.name}: every run failed"
    edge = " (edge of its grid)" if entry.on_edge else ""
    return f"{entry.name}: rate {entry.best.learning_rate:g}{edge}"

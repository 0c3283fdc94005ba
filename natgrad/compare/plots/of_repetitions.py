"""Race curves with quartile bands over repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from natgrad.compare.plots.style import WIDE, open_figure, styles
from natgrad.compare.repetition import Repeated


def bands(repeated: Sequence[Repeated], title: str = "Training") -> Any:
    """Medians and quartiles of training and test loss, by step and by second."""
    count = min(len(each.runs) for each in repeated)
    figure = open_figure(
        f"{title}: median and quartiles of {count} runs at each best learning rate",
        (13, 7.6),
    )
    axes = figure.subplots(2, 2, sharey="row")
    look = styles([each.name for each in repeated])
    for row, (name, what) in enumerate(
        (("train_loss", "Training loss"), ("test_loss", "Test loss"))
    ):
        for column, unit in enumerate(("step", "second")):
            axis = axes[row, column]
            _panel(axis, repeated, name, unit == "second", look)
            axis.set_title(f"{what} by {unit}", fontsize=11)
        axes[row, 0].set_ylabel("nats an example")
    axes[1, 0].set_xlabel("step")
    axes[1, 1].set_xlabel("seconds of training (median), compiling left out")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=10)
    return figure


def _panel(axis: Any, repeated, name: str, by_second: bool, look: dict) -> None:
    seen = []
    for each in repeated:
        low, middle, high = each.quartiles(name)
        across = np.arange(len(middle))
        if by_second:
            across = each.quartiles("seconds")[1]
            across, low, middle, high = (x[1:] for x in (across, low, middle, high))
        style = {**look[each.name], "markevery": max(1, len(middle) // 6)}
        label = f"{each.name} (η = {each.learning_rate:g})"
        axis.plot(across, middle, linewidth=1.8, markersize=5, label=label, **style)
        axis.fill_between(across, low, high, color=style["color"], alpha=0.18)
        seen.append(middle[np.isfinite(middle)])
    values = np.concatenate(seen)
    if values.size and values.min() > 0 and values.max() > WIDE * values.min():
        axis.set_yscale("log")
    if by_second:
        axis.set_xscale("log")
    else:
        axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)

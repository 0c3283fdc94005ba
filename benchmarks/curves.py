"""Pictures of races: losses over steps, seconds and CPU seconds."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure


def figure(name: str, found: dict[str, Any]) -> Figure:
    """Medians over seeds, and bands between quartiles."""
    drawn = Figure(figsize=(15, 4.5), layout="constrained")
    axes = drawn.subplots(1, 3, sharey=True)
    labels = {"step": "step", "wall": "seconds", "cpu": "CPU seconds"}
    starts = [run["loss"][0] for e in found["optimizers"].values() for run in e["runs"]]
    for ax, (clock, label) in zip(axes, labels.items(), strict=True):
        for number, (optimizer, entry) in enumerate(found["optimizers"].items()):
            length = min(len(run["loss"]) for run in entry["runs"])
            times = [run[clock][:length] for run in entry["runs"]]
            losses = np.array([run["loss"][:length] for run in entry["runs"]])
            losses = np.where(np.isfinite(losses), losses, np.nan)
            time, style = np.median(times, axis=0), {"color": f"C{number}"}
            low, middle, high = np.quantile(losses, [0.25, 0.5, 0.75], axis=0)
            ax.plot(time, middle, label=optimizer, **style)
            ax.fill_between(time, low, high, alpha=0.2, **style)
        ax.axhline(found["goal"], color="black", linestyle=":", linewidth=1)
        ax.set(xlabel=label)
    top = float(np.max(starts))
    if found["goal"] > 0:
        axes[0].set_yscale("log")
    bottom, _ = axes[0].get_ylim()
    axes[0].set(ylabel="training loss", ylim=(bottom, top * 1.1 if top > 0 else None))
    axes[0].legend(fontsize="small")
    drawn.suptitle(name)
    return drawn

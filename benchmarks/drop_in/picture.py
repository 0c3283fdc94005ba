"""The report card as heat maps: problems down, optimizers and their rates across."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.drop_in.card import CLASSES, Sheet, cells_of, panels
from benchmarks.drop_in.problems import PROBLEMS
from benchmarks.drop_in.running import NATURAL

# Blue to red is told apart by all kinds of colour vision; signs say it again.
COLOURS = ("#2166ac", "#92c5de", "#fddbc7", "#b2182b", "#d9d9d9", "#ffffff")
SIGNS = ("", "", "·", "×", "–", "")
MEANINGS = (
    "at most Adam's",
    "at most twice Adam's",
    "more (·)",
    "not trained (×)",
    "unfinished (–)",
)


def rates(sides: dict[str, dict[str, Sheet]]) -> list[float]:
    """All learning rates of the natural optimizers."""
    return sorted(
        {
            cell.rate
            for found in sides.values()
            for sheet in found.values()
            for cell in sheet.cells.values()
            if cell.optimizer in NATURAL and isinstance(cell.rate, float)
        }
    )


def picture(sides: dict[str, dict[str, Sheet]]) -> Figure:
    """Heat maps: problems down, optimizers and their rates across."""
    shown, steps = panels(sides), rates(sides)
    names = [n for n in NATURAL if n != "kfac_adaptive"] + ["kfac_adaptive"]
    columns = [(n, r) for n in names[:-1] for r in steps] + [(names[-1], None)] * 2
    rows = [n for n in PROBLEMS if any(n in found for found in sides.values())]
    height = 0.155 * len(rows) + 0.62
    figure = Figure(figsize=(6.9, height * len(shown) + 0.75), layout="constrained")
    axes = np.atleast_1d(figure.subplots(len(shown), 1, sharex=True))
    for axis, (side, batch, momentum) in zip(axes, shown, strict=True):
        codes = np.full((len(rows), len(columns)), len(CLASSES))
        for i, row in enumerate(rows):
            sheet = sides[side].get(row)
            for j, (name, rate) in enumerate(columns if sheet else ()):
                for cell in cells_of(sheet, name, batch, momentum):
                    if cell.rate == rate:
                        codes[i, j] = CLASSES.index(sheet.class_of(cell))
        paint(axis, codes)
        axis.set_yticks(range(len(rows)), rows, fontsize=7)
        what = f"momentum {momentum:g}" if momentum else "no momentum"
        axis.set_title(f"{side}: batches of {batch}, {what}", fontsize=8, loc="left")
        for edge in range(len(steps), len(columns), len(steps) or 1):
            axis.axvline(edge - 0.5, color="white", linewidth=2.5)
    labels = ["as it comes" if rate is None else f"{rate:g}" for _, rate in columns]
    axes[-1].set_xticks(range(len(columns)), labels, rotation=90, fontsize=6)
    top = axes[0].secondary_xaxis("top")
    middles = [i * len(steps) + (len(steps) - 1) / 2 for i in range(len(names) - 1)]
    top.set_xticks([*middles, len(columns) - 1.5])
    top.set_xticklabels([n.replace("_", "\n") for n in names], fontsize=6.5)
    top.tick_params(length=0)
    axes[0].set_title(axes[0].get_title(loc="left"), fontsize=8, loc="left", pad=22)
    handles = [
        Patch(facecolor=c, edgecolor="#888888", label=m)
        for c, m in zip(COLOURS, MEANINGS, strict=False)
    ]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=5,
        fontsize=6.5,
        frameon=False,
    )
    return figure


def paint(axis, codes: np.ndarray) -> None:
    axis.imshow(codes, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=5.5, aspect="auto")
    axis.tick_params(length=0)
    for (i, j), code in np.ndenumerate(codes):
        colour = "white" if code == 3 else "black"
        axis.text(j, i, SIGNS[code], ha="center", va="center", fontsize=7, color=colour)
    for spine in axis.spines.values():
        spine.set_visible(False)

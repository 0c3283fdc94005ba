"""The report card as heat maps: problems down, optimizers and their rates across."""

from __future__ import annotations

import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from benchmarks.drop_in.card import CLASSES, Sheet, cells_of, panels, rows_of
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


def columns_of(sides: dict[str, dict[str, Sheet]]) -> list[tuple[str, float | None]]:
    """(optimizer, rate) from left to right, of all that was run."""
    cells = [
        cell
        for found in sides.values()
        for sheet in found.values()
        for cell in sheet.cells.values()
    ]
    pairs = {(cell.optimizer, cell.rate) for cell in cells}
    return [
        (name, rate)
        for name in NATURAL
        for rate in sorted(r for n, r in pairs if n == name and isinstance(r, float))
        or [None] * 2 * ((name, None) in pairs)  # twice, to have room for its name
    ]


def picture(sides: dict[str, dict[str, Sheet]]) -> Figure:
    """Heat maps: problems down, optimizers and their rates across."""
    shown, columns = panels(sides), columns_of(sides)
    rows = [rows_of(sides[side], batch, momentum) for side, batch, momentum in shown]
    heights = [len(some) for some in rows]
    size = (6.9, 0.155 * sum(heights) + 0.45 * len(shown) + 0.8)
    figure = Figure(figsize=size, layout="constrained")
    grid = {"height_ratios": heights, "sharex": True}
    axes = np.atleast_1d(figure.subplots(len(shown), 1, **grid))
    for axis, panel, problems in zip(axes, shown, rows, strict=True):
        side, batch, momentum = panel
        codes = np.full((len(problems), len(columns)), len(CLASSES))
        for i, problem in enumerate(problems):
            sheet = sides[side][problem]
            for j, (name, rate) in enumerate(columns):
                for cell in cells_of(sheet, name, batch, momentum):
                    if cell.rate == rate:
                        codes[i, j] = CLASSES.index(sheet.class_of(cell))
        paint(axis, codes)
        axis.set_yticks(range(len(problems)), problems, fontsize=7)
        what = f"momentum {momentum:g}" if momentum else "no momentum"
        where = f"{side}: " * (len(sides) > 1)
        axis.set_title(f"{where}batches of {batch}, {what}", fontsize=8, loc="left")
    label(axes, columns)
    handles = [
        Patch(facecolor=colour, edgecolor="#888888", label=meaning)
        for colour, meaning in zip(COLOURS, MEANINGS, strict=False)
    ]
    place = {"loc": "outside lower center", "ncols": 5}
    figure.legend(handles=handles, fontsize=6.5, frameon=False, **place)
    return figure


def label(axes, columns: list[tuple[str, float | None]]) -> None:
    """Names above, rates below, and gaps between optimizers."""
    places = {c: np.mean([i for i, d in enumerate(columns) if d == c]) for c in columns}
    texts = ["none" if rate is None else f"{rate:g}" for _, rate in places]
    axes[-1].set_xticks([*places.values()], texts, rotation=90, fontsize=6)
    names = [name for name, _ in columns]
    ends = {name: i + 0.5 for i, name in enumerate(names)}
    middles = [(names.index(name) + end - 0.5) / 2 for name, end in ends.items()]
    top = axes[0].secondary_xaxis("top")
    top.set_xticks(middles, [n.replace("_", "\n") for n in ends], fontsize=6.5)
    top.tick_params(length=0)
    axes[0].set_title(axes[0].get_title(loc="left"), fontsize=8, loc="left", pad=22)
    for axis in axes:
        for end in ends.values():
            axis.axvline(end, color="white", linewidth=2.5)


def paint(axis, codes: np.ndarray) -> None:
    axis.imshow(codes, cmap=ListedColormap(COLOURS), vmin=-0.5, vmax=5.5, aspect="auto")
    axis.tick_params(length=0)
    for (i, j), code in np.ndenumerate(codes):
        colour = "white" if code == 3 else "black"
        axis.text(j, i, SIGNS[code], ha="center", va="center", fontsize=7, color=colour)
    for spine in axis.spines.values():
        spine.set_visible(False)

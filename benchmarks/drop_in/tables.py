"""Tables of the report card's page, in Markdown, from sheets of cells."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from benchmarks.drop_in.card import CLASSES, Sheet, cells_of, panels, rows_of
from benchmarks.drop_in.running import NATURAL, TUNED, Cell, default_rate
from benchmarks.report import table

# What an optimizer is for, beside its share.
PURPOSE = {
    "natural_gradient": "few parameters, or few outputs an example. Beyond 512 "
    "parameters take a rate of 0.1 or more, and no momentum where a batch does not "
    "determine F",
    "gram": "few outputs an example: up to 512 exact columns a batch. With more it "
    "mixes them, and ends near Adam, above where every label is fitted: then `kfac`",
    "gram_blocks": "as `gram`, layer by layer",
    "spring": "least squares, and batches whose exact step fits. With ten outputs for "
    "each of 128 examples it ends far below Adam on four networks of five, and takes "
    "0.1 to 1.3 CPU seconds a step, or too much memory",
    "kfac": "networks: the first to try",
    "ekfac": "networks, as `kfac`",
    "kfac_adaptive": "no rate to choose; raw, badly scaled inputs",
    "diagonal_fisher": "memory for P numbers. It knows nothing of how parameters act "
    "together and is **no replacement for Adam**: it trains, and ends near Adam or "
    "above",
}


def shares(found: dict[str, Sheet]) -> str:
    """By optimizer: the share of all its cells within twice Adam's loss."""
    rows = []
    for name in NATURAL:
        kinds = Counter(
            sheet.class_of(cell)
            for sheet in found.values()
            for cell in sheet.cells.values()
            if cell.optimizer == name and cell.seed == 1
        )
        if count := kinds.total():
            within = kinds["within 1"] + kinds["within 2"]
            share = f"{within} of {count}, {100 * within / count:.0f} %"
            left = (kinds["unfinished"], kinds["not trained"])
            rows.append((f"`{name}`", share, *left, PURPOSE.get(name, "")))
    heads = ("optimizer", "within twice", "unfinished", "not trained", "what it is for")
    return table(heads, rows)


def summary(sides: dict[str, dict[str, Sheet]]) -> str:
    """By optimizer: cells in each class over all rates, and at the shown rate."""
    rows = []
    for side, batch, momentum in panels(sides):
        for name in NATURAL:
            of_name = [
                (sheet, cell)
                for sheet in sides[side].values()
                for cell in cells_of(sheet, name, batch, momentum)
            ]
            if not of_name:
                continue
            counts = Counter(sheet.class_of(cell) for sheet, cell in of_name)
            shown = [s.ratio(c) for s, c in of_name if c.rate == default_rate(name)]
            where = (f"`{name}`", *[side] * (len(sides) > 1), batch, f"{momentum:g}")
            median = ratio_text(float(np.median(shown))) if shown else ""
            rows.append((*where, *(counts[one] for one in CLASSES), median))
    heads = ("optimizer", *[""] * (len(sides) > 1), "batch", "momentum", *CLASSES)
    return table((*heads, "median as it comes"), rows)


def ratio_text(value: float) -> str:
    return "–" if not math.isfinite(value) else f"{value:.2g}"


def as_they_come(found: dict[str, Sheet], batch: int, momentum: float) -> str:
    """Problems down, optimizers across: ratios at the default rates."""
    names = [
        name
        for name in NATURAL
        if any(cells_of(sheet, name, batch, momentum) for sheet in found.values())
    ]
    rows = []
    for problem in rows_of(found, batch, momentum):
        sheet = found[problem]
        adam, *others = (sheet.best(name, batch, 1) for name in TUNED)
        row = [problem, adam and adam.loss[-1] - sheet.floor]
        row += [ratio_text(sheet.ratio(cell)) if cell else "" for cell in others]
        for name in names:
            cells = cells_of(sheet, name, batch, momentum)
            shown = [c for c in cells if c.rate == default_rate(name)]
            row.append(cell_text(sheet, shown[0]) if shown else "")
        rows.append(row)
    _, *others = TUNED
    heads = ("problem", "Adam, nats", *others, *(f"`{name}`" for name in names))
    return table(heads, rows)


def cell_text(sheet: Sheet, cell: Cell) -> str:
    if cell.note:
        return cell.note.split(":")[0]
    text = ratio_text(sheet.ratio(cell))
    kind = sheet.class_of(cell)
    return f"**{text}**" if kind == CLASSES[0] else text


def costs(found: dict[str, Sheet]) -> str:
    """CPU seconds to the end of the first step, and of a later one."""
    rows = []
    for name in (*TUNED, *NATURAL):
        first, later = [], []
        for sheet in found.values():
            for cell in sheet.cells.values():
                if cell.optimizer == name and cell.first and cell.step_seconds:
                    first.append(cell.first[1])
                    later.append(1000 * cell.step_seconds)
                    break  # one program a problem
        if first:
            figures = (f(some) for some in (first, later) for f in (np.median, max))
            rows.append((f"`{name}`", len(first), *(f"{v:.1f}" for v in figures)))
    heads = ("optimizer", "problems", "first step, median s", "longest s")
    return table((*heads, "later step, median ms", "longest ms"), rows)


def stressed(records: list[dict[str, Any]]) -> str:
    """How many of the problems diverged, by optimizer and trial."""
    trials = list(dict.fromkeys(record["trial"] for record in records))
    rows = []
    for name in dict.fromkeys(record["optimizer"] for record in records):
        row = [f"`{name}`"]
        for trial in trials:
            here = [r for r in records if (r["optimizer"], r["trial"]) == (name, trial)]
            row.append(
                f"{sum(r['diverged'] for r in here)} of {len(here)}" * bool(here)
            )
        rows.append(row)
    return table(("optimizer", *trials), rows)

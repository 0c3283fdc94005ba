"""Tables: how figures are written, as plain text or with rich."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from natgrad.compare.extras import require

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading, lines separated by newlines, with the unit where it has one.
        text: row -> what stands in the cell.
        meaning: one sentence for the legend; empty where the title says it all.
    """

    title: str
    text: Callable[[Any], str]
    meaning: str = ""


Table = tuple[Column, ...]


def figure(value: float | None) -> str:
    """Three significant digits, or two and an exponent: at most 7 characters."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return f"{value:.0f}"
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 999.5:
        return f"{value:#.3g}".rstrip(".")
    if 1 <= abs(value) < 99999.5:
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def estimate(value: float, noise: float) -> str:
    """A figure and its standard error, where that can be seen."""
    if math.isnan(value):
        return MISSING
    visible = math.isfinite(noise) and noise > 1e-3 * abs(value)
    return figure(value) + (f"±{noise:.0g}" if visible else "")


def size(count: float | None) -> str:
    """Bytes, with a decimal unit."""
    if count is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float | None) -> str:
    """Seconds, with a unit."""
    if seconds is None:
        return MISSING
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 2}f} ms"


def cells(table: Table, rows: Iterable[Any]) -> list[list[str]]:
    """The text of every cell, row by row."""
    return [[column.text(row) for column in table] for row in rows]


def legend(table: Sequence[Column]) -> list[tuple[str, str]]:
    """(title on one line, meaning) of the columns that need one."""
    return [(" ".join(c.title.split()), c.meaning) for c in table if c.meaning]


def rich(table: Table, rows: Iterable[Any], spread: int = 1) -> Any:
    """A table of rich, the first column left, the others right.

    Args:
        table: the columns.
        rows: what stands in them; what agrees with the reference is green.
        spread: spaces between columns, beside the one that is always there.

    Raises:
        MissingExtra: where rich is not installed.
    """
    box, text = require("rich.box").SIMPLE_HEAD, require("rich.text").Text
    printed = require("rich.table").Table(box=box, padding=(0, spread, 0, 0))
    rows = list(rows)
    body = cells(table, rows)
    for index, column in enumerate(table):
        lines = [*column.title.split("\n"), *(line[index] for line in body)]
        how = {"justify": "right", "min_width": max(map(len, lines))} if index else {}
        printed.add_column(column.title, overflow="fold", **how)
    for row, line in zip(rows, body, strict=True):
        style = "green" if getattr(row, "agrees", False) else ""
        printed.add_row(*map(text, line), style=style)
    return printed


def plain(table: Table, rows: Iterable[Any]) -> str:
    """A table as lines of text, the first column left, the others right."""
    titles = [column.title.split("\n") for column in table]
    height, body = max(map(len, titles)), cells(table, rows)
    heads = [[""] * (height - len(title)) + title for title in titles]
    lines = [*zip(*heads, strict=True), *body]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(height, ["─" * width for width in widths])
    justified = [
        [text.rjust(width) for text, width in zip(line, widths, strict=True)]
        for line in lines
    ]
    for line, plain in zip(lines, justified, strict=True):
        plain[0] = line[0].ljust(widths[0])
    return "\n".join("  ".join(line).rstrip() for line in justified)

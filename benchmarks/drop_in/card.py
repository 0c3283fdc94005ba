"""What cells amount to: ratios to tuned Adam and classes; the files of cells."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from benchmarks.drop_in.running import NATURAL, Cell
from benchmarks.report import RESULTS, finite

FOLDER = RESULTS / "drop_in"
# From the best to the worst; "unfinished" is too slow, too large or an error.
CLASSES = ("within 1", "within 2", "worse", "not trained", "unfinished")


def ratio(loss: float, reference: float, floor: float) -> float:
    """Excess over the floor, over that of the reference; infinity where not finite.

    Args:
        loss: in nats.
        reference: of tuned Adam.
        floor: what the loss of no model goes below.
    """
    if not math.isfinite(loss):
        return math.inf
    return (loss - floor) / max(reference - floor, 1e-12)


def class_of(start: float, loss: float, reference: float, floor: float) -> str:
    """One of `CLASSES`.

    Not trained is what is not finite, or gained less than half of what tuned Adam
    gained: start − loss < (start − reference)/2.

    Args:
        start: the loss before the first step, in nats.
        loss: after the last.
        reference: of tuned Adam, after the last.
        floor: what the loss of no model goes below.
    """
    if not math.isfinite(loss) or start - loss < (start - reference) / 2:
        return "not trained"
    found = ratio(loss, reference, floor)
    return "within 1" if found <= 1 else "within 2" if found <= 2 else "worse"


def last(cell: Cell) -> float:
    """The loss after the last step; NaN where the cell did not get there."""
    return cell.loss[-1] if cell.loss and not cell.note else math.nan


class Sheet:
    """The cells of one problem.

    Attributes:
        floor: what the loss of no model goes below, in nats.
        about: JSON of what was run: data, parameters, steps, environment, commits.
        cells: by their keys.
    """

    def __init__(self, floor: float, about: dict[str, Any], cells: Iterable[Cell] = ()):
        self.floor, self.about = floor, about
        self.cells = {cell.key: cell for cell in cells}

    def add(self, cell: Cell) -> None:
        """In place of an earlier measurement of the same."""
        self.cells[cell.key] = cell

    def best(self, name: str, batch: int, seed: int) -> Cell | None:
        """The finished cell of a tuned optimizer with the lowest loss."""
        found = [
            cell
            for cell in self.cells.values()
            if (cell.optimizer, cell.batch, cell.seed) == (name, batch, seed)
            and math.isfinite(last(cell))
        ]
        return min(found, key=last, default=None)

    def ratio(self, cell: Cell) -> float:
        """Its loss over that of tuned Adam of this batch size and seed."""
        return ratio(last(cell), self._reference(cell), self.floor)

    def class_of(self, cell: Cell) -> str:
        """One of `CLASSES`."""
        if cell.note:
            return CLASSES[-1]
        start, reference = cell.loss[0], self._reference(cell)
        return class_of(start, last(cell), reference, self.floor)

    def _reference(self, cell: Cell) -> float:
        adam = self.best("adam", cell.batch, cell.seed)
        return math.nan if adam is None else last(adam)

    def save(self, path: Path) -> None:
        """A JSON file, with a line for each cell."""
        path.parent.mkdir(parents=True, exist_ok=True)
        head = json.dumps(finite({"floor": self.floor, **self.about}), indent=1)
        rounded = [
            [
                [rounding(v) for v in x] if isinstance(x, list | tuple) else rounding(x)
                for x in cell
            ]
            for cell in sorted(self.cells.values(), key=lambda c: str(c.key))
        ]
        lines = ",\n  ".join(json.dumps(finite(cell)) for cell in rounded)
        fields = json.dumps(Cell._fields)
        body = f' "fields": {fields},\n "cells": [\n  {lines}\n ]\n'
        path.write_text(head.rstrip("\n}") + ",\n" + body + "}\n")


def rounding(value: Any) -> Any:
    """Six digits of a float."""
    return float(f"{value:.6g}") if isinstance(value, float) else value


def load(path: Path) -> Sheet | None:
    """The sheet of a file; None where there is none."""
    if not path.exists():
        return None
    about = json.loads(path.read_text())
    fields, rows = about.pop("fields"), about.pop("cells")
    cells = []
    for row in rows:
        found = dict(zip(fields, row, strict=True))
        found["loss"] = [math.nan if v is None else v for v in found["loss"]]
        cells.append(Cell(**found))
    return Sheet(about.pop("floor"), about, cells)


def cells_of(sheet: Sheet, optimizer: str, batch: int, momentum: float) -> list[Cell]:
    """Those of the first seed, by rate."""
    wanted = (optimizer, batch, momentum)
    return [c for c in sheet.cells.values() if c.key[:3] == wanted and c.seed == 1]


def panels(sides: dict[str, dict[str, Sheet]]) -> list[tuple[str, int, float]]:
    """The parts of the matrix that have cells: (side, batch size, momentum)."""
    return sorted(
        {
            (side, cell.batch, cell.momentum)
            for side, found in sides.items()
            for sheet in found.values()
            for cell in sheet.cells.values()
            if cell.optimizer in NATURAL
        },
        key=lambda panel: (panel[0] == "before", *panel[1:]),
    )


def rows_of(found: dict[str, Sheet], batch: int, momentum: float) -> list[str]:
    """The problems of a panel."""
    wanted = (batch, momentum)
    return [
        name
        for name, sheet in found.items()
        if any(
            c.optimizer in NATURAL and c[1:3] == wanted for c in sheet.cells.values()
        )
    ]

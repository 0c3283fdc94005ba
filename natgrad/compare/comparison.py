"""The record of a comparison: rows of figures, and where they were taken.

What the figures are stands in `natgrad.compare.figures`, `row`, `invariance` and
`misspecification`.
"""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import Any

from natgrad.compare import tables
from natgrad.compare.error_sources import ErrorSource
from natgrad.compare.extras import require
from natgrad.compare.figures import Figures, Spectrum
from natgrad.compare.misspecification import Misspecification
from natgrad.compare.row import Row, figure_names
from natgrad.compare.verdict import Verdict, judge

# Characters a line of plain text.
_WIDTH = 88


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows of figures, and where they were taken.

    Attributes:
        rows: one an approximation.
        reference: the name of what they are measured against.
        damping: λ.
        step_size: η.
        loss: L(θ), nats an example.
        gradient_norm: |g|.
        reference_norm: ‖F‖_F.
        parameters: P.
        examples: N.
        dtype: of the figures.
        formed: were matrices [P, P] formed? Otherwise figures are estimates from
            products; see `natgrad.compare.figures`.
        spectrum: eigenvalues of F.
        misspecification: could the labels have come from the model?
        skipped: (name, reason) of approximations that were not asked for by name and
            do not fit.
        error_sources: of K-FAC's error, where that was measured: each block, what lies
            between the layers, and all; see `natgrad.compare.error_sources`.
    """

    rows: tuple[Row, ...]
    reference: str
    damping: float
    step_size: float
    loss: float
    gradient_norm: float
    reference_norm: float
    parameters: int
    examples: int
    dtype: str
    formed: bool
    spectrum: Spectrum
    misspecification: Misspecification
    skipped: tuple[tuple[str, str], ...] = ()
    error_sources: tuple[ErrorSource, ...] = ()

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return self.table()

    def __rich__(self) -> Any:
        """The tables and what the labels say, for `rich.print`."""
        parts = [tables.rich(table, rows) for table, rows in self._tables()]
        labels = require("rich.text").Text(f"Labels: {self.misspecification.verdict}.")
        return require("rich.console").Group(*parts, labels)

    def _tables(self) -> list[tuple[tables.Table, Sequence[Any]]]:
        """(columns, what stands in them) of each table."""
        sources = [(tables.SOURCES, self.error_sources)] * bool(self.error_sources)
        figures = [(table, self.rows) for table in tables.FIGURES]
        return [*figures, (tables.BLOCKS, self.by_block()), *sources]

    def table(self) -> str:
        """The figures as plain text."""
        parts = [tables.plain(table, rows) for table, rows in self._tables()]
        notes = [f"left out: {name}: {reason}" for name, reason in self.skipped]
        lines = [f"labels: {self.misspecification.verdict}", *notes]
        return "\n\n".join(
            [*parts, "\n".join(textwrap.fill(line, _WIDTH) for line in lines)]
        )

    def verdict(self) -> Verdict:
        """Which approximation to use, in plain words: see `natgrad.compare.verdict`."""
        return judge(self.rows, self.misspecification, self.error_sources)

    def by_block(self) -> list[tables.BlockRow]:
        """One line a block and approximation, block by block."""
        return [
            tables.BlockRow(row.name, figures)
            for of_rows in zip(*(row.blocks for row in self.rows), strict=True)
            for row, figures in zip(self.rows, of_rows, strict=True)
        ]

    def records(self) -> list[dict[str, Any]]:
        """One flat dict an approximation and part; block "" is all parameters."""
        records = []
        for row in self.rows:
            shared = {"approximation": row.name, "reference": self.reference}
            whole = {"block": "", "parameters": self.parameters, **row.figures()}
            costs = dataclasses.asdict(row.cost)
            statistics = {"statistics_bytes": row.statistics_bytes}
            records.append({**shared, **whole, **costs, **statistics})
            for block in row.blocks:
                figures = {n: getattr(block, n) for n in figure_names(Figures)}
                place = {"block": block.name, "parameters": block.parameters}
                records.append({**shared, **place, **figures})
        return records

    def to_pandas(self) -> Any:
        """`records` as a pandas DataFrame.

        Raises:
            MissingExtra: where pandas is not installed.
        """
        return require("pandas").DataFrame.from_records(self.records())

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        labels = self.misspecification
        return {
            **vars(self),
            "rows": [row.to_dict() for row in self.rows],
            "spectrum": dataclasses.asdict(self.spectrum),
            "misspecification": vars(labels) | {"verdict": labels.verdict},
            "skipped": [list(pair) for pair in self.skipped],
            "error_sources": [vars(source) for source in self.error_sources],
        }

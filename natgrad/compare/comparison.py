"""The record of a comparison: rows of figures, where they were taken, and a verdict.

What the figures are stands in `natgrad.compare.figures`, `row`, `invariance` and
`misspecification`. The verdict says to a stranger which approximation to use: one
follows the exact step where the cosine between the two is at least 0.9 and their
lengths differ by less than a factor of 2. Of those that do, the quickest is
recommended; one made of the data's own labels is not, however close it comes.
"""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from natgrad.compare import tables
from natgrad.compare.error_sources import ErrorSource, in_words
from natgrad.compare.extras import require
from natgrad.compare.figures import Spectrum
from natgrad.compare.misspecification import Misspecification
from natgrad.compare.row import Row
from natgrad.compare.tables import duration

# Characters a line of plain text.
_WIDTH = 88

# Cosine and ratio of lengths that follow the exact step, and a cosine that is poor.
_FAITHFUL, _LENGTH, _POOR = 0.9, 2.0, 0.5
# How many times quicker something must be to be worth mentioning.
_CHEAP = 2.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """In plain words.

    Attributes:
        headline: one sentence, or two short ones.
        points: what else there is to know, a sentence or two each.
        line: what to paste into a program; empty where nothing is recommended.
    """

    headline: str
    points: tuple[str, ...]
    line: str = ""

    def __str__(self) -> str:
        line = f"\n    {self.line}" * bool(self.line)
        return self.headline + line + "".join(f"\n- {point}" for point in self.points)


def together(first: Verdict, *others: Verdict) -> Verdict:
    """One verdict that ends with what the others say."""
    rest = [text for other in others for text in (other.headline, *other.points)]
    return Verdict(first.headline, (*first.points, *rest), first.line)


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
        lines = [f"labels: {self.misspecification.verdict}"]
        lines += [f"left out: {name}: {reason}" for name, reason in self.skipped]
        notes = "\n".join(textwrap.fill(line, _WIDTH) for line in lines)
        return "\n\n".join([*parts, notes])

    def verdict(self) -> Verdict:
        """Which approximation to use, in plain words."""
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
            costs = {**vars(row.cost), "statistics_bytes": row.statistics_bytes}
            parts = [(row.whole, {**row.figures(), **costs})]
            parts += [(block, block.figures()) for block in row.blocks]
            for part, figures in parts:
                place = {"approximation": row.name, "reference": self.reference}
                place |= {"block": part.name, "parameters": part.parameters}
                records.append({**place, **figures})
        return records

    def to_pandas(self: Any) -> Any:
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


def judge(
    rows: Sequence[Row], labels: Misspecification, sources: tuple[ErrorSource, ...] = ()
) -> Verdict:
    """Which of the approximations to use, and what to know about the others."""
    ranked = sorted(rows, key=lambda row: row.cost.run_seconds)
    fishers = [row for row in ranked if not row.uses_targets]
    best = next((row for row in fishers if _follows(row)), None)
    points = _warnings(rows) + in_words(sources)
    points += [
        f"{row.name} is made of the data's own labels and is not the Fisher: its step "
        f"has cosine {row.step_cosine:.2f} with the natural gradient here, and "
        f"{row.step_norm_ratio:.2f} of its length."
        for row in rows
        if row.uses_targets
    ]
    points.append(f"The labels: {labels.verdict}.")
    if best is None:
        headline = "No approximation measured here follows the natural gradient."
        if fishers:
            near = max(fishers, key=_cosine)
            headline += f" {near.name} comes closest (cosine {near.step_cosine:.2f})."
        return Verdict(headline, tuple(points))
    close, seconds = "which is the exact one to rounding", best.cost.run_seconds
    if not best.agrees:
        close = (
            f"which is close to the exact one (cosine {best.step_cosine:.2f}, "
            f"{best.step_norm_ratio:.2f} of its length)"
        )
    headline = (
        f"The natural gradient is followed most cheaply by {best.name}: "
        f"{duration(seconds)} for a step {close}."
    )
    quick = [row for row in fishers if _CHEAP * row.cost.run_seconds <= seconds]
    if quick:
        other = max(quick, key=_cosine)
        cheaper = (
            f"If {best.name} is too slow: {other.name} takes "
            f"{duration(other.cost.run_seconds)}, and its step has cosine "
            f"{other.step_cosine:.2f} with the exact one and "
            f"{other.step_norm_ratio:.2f} of its length."
        )
        points.insert(0, cheaper)
    return Verdict(headline, tuple(points))


def _follows(row: Row) -> bool:
    """Is its damped step nearly the exact one?"""
    near = 1 / _LENGTH <= row.step_norm_ratio <= _LENGTH
    return row.step_cosine >= _FAITHFUL and near


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Poor directions, and full steps that go up."""
    poor = [row for row in rows if not row.step_cosine >= _POOR]
    up = [row.name for row in rows if not row.actual_loss_decrease > 0]
    points = []
    if poor:
        names = ", ".join(f"{row.name} ({row.step_cosine:.2f})" for row in poor)
        points.append(f"Far from the exact step (cosine below {_POOR:g}): {names}.")
    if up:
        points.append(
            f"A step of rate 1 raises the loss for {', '.join(up)}: take a smaller "
            "rate or more damping."
        )
    return points


def _cosine(row: Row) -> float:
    return row.step_cosine if math.isfinite(row.step_cosine) else -2.0

"""What the terminal shows: tables with rich, what they mean, and progress."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from natgrad.cli.experiment import Experiment
from natgrad.compare import tables
from natgrad.compare.comparison import Comparison, Verdict
from natgrad.compare.extras import require
from natgrad.compare.row import Row
from natgrad.compare.runs import Race
from natgrad.compare.tables import Table, figure

# (what is being done now, how many parts were finished since the last call).
Advance = Callable[[str, float], None]

# Seconds between two lines of progress where there is no terminal.
_INTERVAL = 15.0

# Characters a line from which columns stand further apart.
_WIDE = 100


class Report:
    """Prints to standard output."""

    def __init__(self):
        console = require("rich.console").Console
        self._out = console(highlight=False)

    def opening(self, experiment: Experiment, surroundings: dict[str, Any]) -> None:
        """What is compared, on what."""
        record, settings = experiment.describe(), experiment.settings
        about, device = record["data"], surroundings["device"]["kind"]
        hidden = f" {'-'.join(map(str, settings.hidden))}" * (settings.model == "mlp")
        self._line(
            f"{settings.model}{hidden} on {about['name']}: {record['parameters']} "
            f"parameters, {about['train_examples']} training and "
            f"{about['test_examples']} test examples, {record['dtype']}, {device}, "
            f"seed {settings.seed}; targets: {experiment.dataset.about_targets}",
            style="bold",
        )

    def fidelity(self, comparison: Comparison, experiment: Experiment) -> None:
        """The tables of approximations."""
        at_step = experiment.settings.at_step
        self._heading("Approximations of the Fisher information")
        self._line(
            f"A against F = {comparison.reference}, over all training data, after "
            f"{at_step} steps of Adam. Loss {figure(comparison.loss)} nats, |g| "
            f"{figure(comparison.gradient_norm)}, ‖F‖ "
            f"{figure(comparison.reference_norm)}; damping λ = {comparison.damping:g}; "
            f"step d = {comparison.step_size:g} · (A + λI)⁻¹g."
        )
        step, *others = tables.FIGURES
        self._table(step, comparison.rows, notes(comparison.rows))
        for table in others:
            self._table(table, comparison.rows)
        if comparison.error_sources:
            self._table(tables.SOURCES, comparison.error_sources)
        self._line(f"Labels: {comparison.misspecification.verdict}.")

    def race(self, race: Race, experiment: Experiment) -> None:
        """The table of optimizers."""
        self._heading("Training")
        self._line(
            f"{race.steps} steps of {race.batch_size} examples; each optimizer with "
            f"{experiment.settings.rates} learning rates half a decade apart, the best "
            "chosen by training loss."
        )
        named = (
            "a curvature's name: the step −η (A + λI)⁻¹g with A of the current batch "
            f"and λ = {race.damping:g}, which was not tuned; sgd and adam are optax's, "
            "soap and kl_shampoo know no curvature"
        )
        self._table(tables.RACE, race.entries, [("optimizer", named)])

    def summary(self, comparison: Comparison, race: Race) -> None:
        """One table of all: approximations as such, and as optimizers."""
        self._out.print()
        self._table(tables.SUMMARY, summary(comparison, race), None)
        exact = [row.name for row in comparison.rows if row.agrees]
        self._line(
            f"Error, cosine and length: of A and its step (A + λI)⁻¹g against F = "
            f"{comparison.reference}, λ = {comparison.damping:g}; {', '.join(exact)} "
            f"agree to rounding. Losses in nats after {race.steps} steps of "
            f"{race.batch_size} examples at the best rate (* on the edge of its grid). "
            + " ".join(f"{mark} {text}." for mark, text in notes(comparison.rows))
            + " --full shows all figures.",
            style="dim",
        )

    def verdict(self, words: Verdict) -> None:
        """Which to use, the line to paste, and why."""
        self._heading(words.headline)
        if words.line:
            self._line(words.line, style="green")
        for point in words.points:
            self._line(f"- {point}")

    def closing(self, text: str) -> None:
        """Which files there are now."""
        self._out.print()
        self._line(text)

    def _heading(self, text: str) -> None:
        self._out.print()
        self._line(text, style="bold")

    def _line(self, text: str, style: str = "") -> None:
        self._out.print(text, style=style, markup=False, soft_wrap=False)

    def _table(
        self,
        table: Table,
        rows: Sequence[Any],
        legend: Iterable[tuple[str, str]] | None = (),
    ) -> None:
        """A table, and what its columns mean below these notes; None for no legend."""
        self._out.print(tables.rich(table, rows, int(self._out.width >= _WIDE)))
        if legend is None:
            return
        grid = require("rich.table").Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(style="dim")
        text = require("rich.text").Text
        for title, meaning in (*legend, *tables.legend(table)):
            grid.add_row(text(title), text(meaning))
        self._out.print(grid)


def notes(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """What the marks mean that stand beside names of rows: (mark, meaning)."""
    used = {mark for row in rows for mark in tables.marks(row)}
    return [(mark, meaning) for mark, meaning in tables.NOTES if mark in used]


def summary(comparison: Comparison, race: Race) -> list[tables.SummaryRow]:
    """Each name once: by final training loss, then by the cosine of the step.

    Of what agrees with the reference, what did not race is left out.
    """
    rows = {row.name: row for row in comparison.rows}
    entries = {entry.name: entry for entry in race.entries}
    names = [
        name
        for name in {**entries, **rows}
        if name in entries or name == comparison.reference or not rows[name].agrees
    ]

    def order(line: tables.SummaryRow) -> tuple[float, float]:
        loss = line.entry.final_train_loss if line.entry else math.inf
        return loss, -line.row.step_cosine if line.row else 0.0

    lines = (tables.SummaryRow(n, rows.get(n), entries.get(n)) for n in names)
    return sorted(lines, key=order)


@contextlib.contextmanager
def progress(total: float) -> Iterator[Advance]:
    """Shows on standard error how much of `total` is done."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    parts = require("rich.progress")
    columns = (
        parts.TextColumn("{task.description}", markup=False),
        parts.BarColumn(bar_width=None),
        parts.TaskProgressColumn(),
        parts.TimeElapsedColumn(),
        parts.TextColumn("left"),
        parts.TimeRemainingColumn(),
    )
    console = require("rich.console").Console(stderr=True, highlight=False)
    with parts.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("starting", total=total)
        yield lambda text, done: bar.update(task, description=text, advance=done)


def _lines(total: float) -> Advance:
    """Prints a line if the last is `_INTERVAL` seconds old."""
    finished, start = 0.0, time.monotonic()
    last = start

    def advance(text: str, done: float) -> None:
        nonlocal finished, last
        finished, now = min(finished + done, total), time.monotonic()
        if now - last < _INTERVAL:
            return
        last, share, left = now, finished / total, ""
        if share:
            left = f", about {(now - start) * (1 / share - 1):.0f} s left"
        print(f"{share:.0%} {text}{left}", file=sys.stderr, flush=True)

    return advance

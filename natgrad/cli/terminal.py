"""What the terminal shows: tables with rich, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from natgrad.cli.experiment import Experiment
from natgrad.compare import columns, tables
from natgrad.compare.comparison import Comparison
from natgrad.compare.extras import require
from natgrad.compare.row import Row
from natgrad.compare.runs import Race
from natgrad.compare.tables import Table, figure

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
        about = record["data"]
        hidden = f" {'-'.join(map(str, settings.hidden))}" * (settings.model == "mlp")
        device = surroundings["device"]
        self._line(
            f"{settings.model}{hidden} on {about['name']}: {record['parameters']} "
            f"parameters, {about['train_examples']} training and "
            f"{about['test_examples']} test examples, {record['dtype']}, "
            f"{device['kind']}, seed {settings.seed}",
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
        step, *others = columns.FIGURES
        self._table(step, comparison.rows)
        self._legend([*notes(comparison.rows), *tables.legend(step)])
        for table in others:
            self._table(table, comparison.rows)
            self._legend(tables.legend(table))
        self._line(f"Labels: {comparison.misspecification.verdict}.")

    def race(self, race: Race, experiment: Experiment) -> None:
        """The table of optimizers."""
        self._heading("Training")
        self._line(
            f"{race.steps} steps of {race.batch_size} examples; each optimizer with "
            f"{experiment.settings.rates} learning rates half a decade apart, the best "
            "chosen by training loss."
        )
        self._table(columns.RACE, race.entries)
        baselines = "sgd and adam are optax's"
        self._legend(
            [
                (
                    "optimizer",
                    "a curvature's name: the step −η (A + λI)⁻¹g with A of the current "
                    f"batch and λ = {race.damping:g}, which was not tuned; {baselines}",
                ),
                *tables.legend(columns.RACE),
            ]
        )

    def verdict(self, headline: str, points: Iterable[str]) -> None:
        """Which approximation to use."""
        self._heading(headline)
        for point in points:
            self._line(f"- {point}")

    def closing(self, written: Iterable[str], seconds: float) -> None:
        """Which files there are now."""
        self._out.print()
        self._line(f"Wrote {', '.join(written)} in {seconds:.0f} s.")

    def _heading(self, text: str) -> None:
        self._out.print()
        self._line(text, style="bold")

    def _line(self, text: str, style: str = "") -> None:
        self._out.print(text, style=style, markup=False, soft_wrap=False)

    def _table(self, columns: Table, rows: Sequence[Any]) -> None:
        self._out.print(tables.rich(columns, rows, int(self._out.width >= _WIDE)))

    def _legend(self, entries: Iterable[tuple[str, str]]) -> None:
        grid = require("rich.table").Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column(style="dim")
        text = require("rich.text").Text
        for title, meaning in entries:
            grid.add_row(text(title), text(meaning))
        self._out.print(grid)


def notes(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """What the marks mean that stand beside names: (mark, meaning).

    Args:
        rows: of a comparison; marks that none of them has are left out.
    """
    used = {mark for row in rows for mark in columns.marks(row)}
    return [(mark, meaning) for mark, meaning in columns.NOTES if mark in used]

"""`natgrad report`: everything in one HTML page, and the figures beside it as JSON.

Writes report.html and report.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import optax

from natgrad.cli import html
from natgrad.cli.experiment import APPROACH_RATE, Experiment
from natgrad.cli.options import (
    CompareOptions,
    FidelityOptions,
    Output,
    RaceOptions,
    option,
    racers,
)
from natgrad.cli.progress import Advance
from natgrad.cli.session import Session, Stage
from natgrad.cli.terminal import notes, summary
from natgrad.compare import columns, plots
from natgrad.compare.budget import Budget
from natgrad.compare.comparison import Comparison
from natgrad.compare.repetition import Repeated, repeated
from natgrad.compare.runs import Race
from natgrad.compare.setup import ComparisonSetup
from natgrad.compare.tables import figure
from natgrad.compare.trace import Trace, comparisons_along
from natgrad.compare.verdict import Verdict

_OPTIMIZERS = (
    "dense",
    "matrix_free",
    "kfac",
    "ekfac",
    "diagonal",
    "empirical",
    "sgd",
    "adam",
)


class ReportSession(Session):
    """Compare, race, and write the page."""

    command = "report"

    def __init__(self, experiment: Experiment, output: Path):
        super().__init__(experiment, output)
        self._comparisons: dict[int, Comparison] = {}
        self._repeated: tuple[Repeated, ...] = ()

    def stages(self) -> list[Stage]:
        """Compare and train, and what was asked for beside."""
        settings = self.experiment.settings
        more = []
        if settings.along:
            more.append((len(set(settings.along)), self._follow))
        if settings.repeat:
            more.append((1, self._repeat))
        return [self.compare(), self.train(), *more]

    def _follow(self, advance: Advance) -> None:
        """Compare along a run of Adam."""
        experiment, settings = self.experiment, self.experiment.settings
        named = settings.approximations if experiment.setup.all_named else None
        setup = ComparisonSetup(
            experiment.model,
            named,
            reference=settings.reference,
            damping=settings.damping,
            budget=Budget(repeats=1, charts=0),
        )
        comparisons = comparisons_along(
            setup,
            experiment.initial,
            *experiment.dataset.train,
            optimizer=optax.adam(APPROACH_RATE),
            steps=settings.along,
        )
        for step, comparison in comparisons:
            self._comparisons[step] = comparison
            advance(f"after step {step}", 1)

    def _repeat(self, advance: Advance) -> None:
        """The best runs from other seeds."""
        experiment, settings = self.experiment, self.experiment.settings
        assert self.race is not None, "training comes before"
        advance("other seeds", 0)
        self._repeated = repeated(
            experiment.model,
            experiment.initial_from,
            experiment.dataset.train,
            experiment.dataset.test,
            self.race,
            score=experiment.dataset.score,
            seeds=range(settings.seed + 1, settings.seed + 1 + settings.repeat),
        )

    def show(self) -> None:
        """The verdict, once all is there; the page has the rest."""
        if self.race is not None and not (self._comparisons or self._repeated):
            self.report.verdict(self.verdict())

    def save(self, *, complete: bool) -> None:
        """report.html and report.json."""
        words = self.verdict()
        record = self.description(complete=complete)
        steps = {step: c.to_dict() for step, c in self._comparisons.items()}
        record["along"] = steps or None
        record["repeated"] = [entry.to_dict() for entry in self._repeated] or None
        record["verdict"] = {**vars(words), "points": list(words.points)}
        text = html.render(self._page(record, words))
        self.record("report.json", record)
        self.file("report.html", lambda file: file.write(text.encode()))

    def _page(self, record: dict[str, Any], words: Verdict) -> dict[str, Any]:
        """What page.html shows."""
        comparison, race = self.comparison, self.race
        return {
            "title": f"Which Fisher approximation? {self.experiment.subject}",
            "record": record,
            "verdict": words,
            "comparison": comparison,
            "race": race,
            "summary": summary(comparison, race) if comparison and race else [],
            "bars": _bars(race) if race else [],
            "winner": race.recommended.name if race and race.recommended else "",
            "seeds": len(self._repeated[0].runs) if self._repeated else 0,
            "along": tuple(self._comparisons),
            "columns": columns,
            "notes": notes(comparison.rows) if comparison else [],
            "pictures": {k: html.pictures(f) for k, f in self._figures().items()},
        }

    def _figures(self) -> dict[str, Any]:
        """The pictures of what is finished: name -> matplotlib figure."""
        figures = {}
        if self.comparison is not None:
            figures["fidelity"] = self.fidelity_figure(self.comparison)
            figures["quadratic"] = plots.quadratic(self.comparison)
            figures["spectra"] = plots.spectra(self.comparison)
            figures["blocks"] = plots.blocks(self.comparison)
        if self.race is not None:
            figures["training"] = self.training_figure(self.race)
        if self._repeated:
            figures["bands"] = plots.bands(self._repeated)
        if self._comparisons:
            steps, comparisons = zip(*self._comparisons.items(), strict=True)
            figures["along"] = plots.along(Trace(steps, comparisons))
        return figures


def _bars(race: Race) -> list[tuple[str, str, float]]:
    """(name, final training loss, its part of the largest) of who did not fail."""
    losses = {entry.name: entry.final_train_loss for entry in race.ranked}
    longest = max(map(abs, losses.values()), default=1.0) or 1.0
    return [(name, figure(loss), abs(loss) / longest) for name, loss in losses.items()]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report(RaceOptions, FidelityOptions, CompareOptions):
    """Write one HTML page: which approximation to use, and why.

    Compare, train, and write one self-contained page that can be read offline or
    sent to a colleague: which approximation to use, and what that rests on.
    """

    output: Output = Path("natgrad-report")
    optimizers: Annotated[list[str] | None, racers(_OPTIMIZERS)] = None
    repeat: Annotated[
        int | None,
        option(
            "N",
            "run each optimizer from N more seeds at its best rate (default: 0)",
            lowest=0,
        ),
    ] = None
    along: Annotated[
        list[int] | None,
        option(
            "STEP...",
            "also compare after these steps of a run of Adam (default: none)",
            lowest=0,
        ),
    ] = None

    session = ReportSession

    def defaults(self) -> Mapping[str, Any]:
        """More optimizers, and invariance unless a look is wanted."""
        return {"optimizers": _OPTIMIZERS, "charts": 0 if self.quick else 1}

"""`natgrad report`: everything in one HTML page, and the figures beside it as JSON.

Writes report.html and report.json. The page asks for nothing beside itself, which its
content security policy also forbids; it reads on a phone as on a desk: panels stack,
and what is wider scrolls in its own box.
"""

from __future__ import annotations

import base64
import functools
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optax

from natgrad.cli.experiment import APPROACH_RATE, Experiment
from natgrad.cli.options import OF_FIDELITY, OF_MODEL, OF_RACE, ComparingCommand, takes
from natgrad.cli.session import Session, Stage
from natgrad.cli.shared import json_bytes
from natgrad.cli.terminal import Advance, notes, summary
from natgrad.compare import plots, tables
from natgrad.compare.comparison import Comparison, Verdict
from natgrad.compare.extras import require
from natgrad.compare.figures import Budget
from natgrad.compare.runs import Race, Repeated
from natgrad.compare.setup import ComparisonSetup
from natgrad.compare.tables import figure
from natgrad.compare.trace import Trace, comparisons_along
from natgrad.compare.training import repeated

_OPTIMIZERS = ("dense", "matrix_free", "kfac", "ekfac", "diagonal", "empirical")
_OPTIMIZERS += ("sgd", "adam")

# Pixels an inch.
_DPI = 130


class ReportSession(Session):
    """Compare, race, and write the page."""

    command, file = "report", "report.json"

    def __init__(self, experiment: Experiment, output: Path):
        super().__init__(experiment, output)
        self._comparisons: dict[int, Comparison] = {}
        self._repeated: tuple[Repeated, ...] = ()
        self._drawn: dict[str, tuple[Any, list[str]]] = {}  # of what, and pictures

    def stages(self) -> list[Stage]:
        """Compare and train, and what was asked for beside."""
        settings, more = self.experiment.settings, []
        if settings.along:
            more.append((len(set(settings.along)), self._follow))
        if settings.repeat:
            more.append((1, self._repeat))
        return [*super().stages(), *more]

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
        experiment, data = self.experiment, self.experiment.dataset
        first, count = experiment.settings.seed + 1, experiment.settings.repeat
        assert self.race is not None, "training comes before"
        advance("other seeds", 0)
        self._repeated = repeated(
            experiment.model,
            experiment.initial_from,
            data.train,
            data.test,
            self.race,
            score=data.score,
            seeds=range(first, first + count),
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
        page = render(self._page(record, words)).encode()
        self.write(self.file, lambda file: file.write(json_bytes(record)))
        self.write("report.html", lambda file: file.write(page))

    def _page(self, record: dict[str, Any], words: Verdict) -> dict[str, Any]:
        """What page.html shows."""
        comparison, race = self.comparison, self.race
        best = race and race.recommended
        return {
            "title": f"Which Fisher approximation? {self.experiment.subject}",
            "record": record,
            "verdict": words,
            "comparison": comparison,
            "race": race,
            "summary": summary(comparison, race) if comparison and race else [],
            "bars": _bars(race) if race else [],
            "winner": best.name if best else "",
            "seeds": len(self._repeated[0].runs) if self._repeated else 0,
            "along": tuple(self._comparisons),
            "tables": tables,
            "notes": notes(comparison.rows) if comparison else [],
            "pictures": self._pictures(),
        }

    def _pictures(self) -> dict[str, list[str]]:
        """The pictures of what is finished, of which the new ones are drawn."""
        drawn = self._drawn
        self._drawn = {
            name: drawn[name]
            if name in drawn and drawn[name][0] is of
            else (of, pictures(draw()))
            for name, of, draw in self._figures()
        }
        return {name: found for name, (_, found) in self._drawn.items()}

    def _figures(self) -> Iterator[tuple[str, Any, Callable[[], Any]]]:
        """(name, of what, a function that draws it), of what is finished."""
        comparison = self.comparison
        if comparison:
            yield "fidelity", comparison, self.fidelity_figure
            for draw in (plots.quadratic, plots.spectra, plots.blocks):
                yield draw.__name__, comparison, functools.partial(draw, comparison)
        if self.race:
            yield "training", self.race, self.training_figure
        if self._repeated:
            of = self._repeated
            yield "bands", of, functools.partial(plots.bands, of)
        if self._comparisons:
            trace = Trace(*zip(*self._comparisons.items(), strict=True))
            yield "along", trace, functools.partial(plots.along, trace)


def _bars(race: Race) -> list[tuple[str, str, float]]:
    """(name, final training loss, its part of the largest) of who did not fail."""
    losses = {entry.name: entry.final_train_loss for entry in race.ranked}
    longest = max(map(abs, losses.values()), default=1.0) or 1.0
    return [(name, figure(loss), abs(loss) / longest) for name, loss in losses.items()]


def render(values: Mapping[str, Any]) -> str:
    """The page: page.html with a value for each of its names; text is escaped."""
    jinja2 = require("jinja2")
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("natgrad.cli", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html")
    return page.render(values, legend=tables.legend, figure=figure)


def pictures(figure: Any) -> list[str]:
    """PNGs as the `src` of images, one a panel; one where panels share axes."""
    buffer, axes = io.BytesIO(), figure.axes
    groups = [g for a in axes for g in (a.get_shared_x_axes(), a.get_shared_y_axes())]
    if any(len(group.get_siblings(axis)) > 1 for axis in axes for group in groups):
        plots.save(figure, buffer)
        return [_data_uri(buffer)]
    figure.set_dpi(_DPI)
    canvas = require("matplotlib.backends.backend_agg").FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())
    uris = []
    for axis in axes:
        # Drawn by matplotlib from the lower edge, stored from the upper one.
        box = axis.get_tightbbox(canvas.get_renderer()).padded(_DPI // 16)
        left, right, low, high = (
            max(0, round(x)) for x in (*box.intervalx, *box.intervaly)
        )
        rows = slice(max(0, len(pixels) - high), len(pixels) - low)
        buffer = io.BytesIO()
        require("matplotlib.image").imsave(buffer, pixels[rows, left:right])
        uris.append(_data_uri(buffer))
    return uris


def _data_uri(buffer: io.BytesIO) -> str:
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@takes(
    *(*OF_MODEL, "output", *OF_FIDELITY, *OF_RACE, "repeat", "along"),
    output="natgrad-report",
    optimizers=_OPTIMIZERS,
)
class Report(ComparingCommand):
    """Write one HTML page: which approximation to use, and why.

    Compare, train, and write one self-contained page that can be read offline or
    sent to a colleague: which approximation to use, and what that rests on.
    """

    session = ReportSession

    def defaults(self) -> Mapping[str, Any]:
        """More optimizers, and invariance unless a look is wanted."""
        return {"optimizers": _OPTIMIZERS, "charts": 0 if self.quick else 1}

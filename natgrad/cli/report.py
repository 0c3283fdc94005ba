"""`natgrad report`: everything in one HTML page, and the figures beside it as JSON.

Writes report.html and report.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import optax

from natgrad.cli import files, options
from natgrad.cli import html as page
from natgrad.cli.experiment import APPROACH_RATE, Experiment
from natgrad.cli.html import Section
from natgrad.cli.progress import Advance
from natgrad.cli.session import Session
from natgrad.compare import columns, plots
from natgrad.compare.along import Trace, along
from natgrad.compare.comparison import Comparison
from natgrad.compare.effort import Budget
from natgrad.compare.repetition import Repeated, repeated
from natgrad.compare.standings import Race
from natgrad.compare.verdict import verdict

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

_CAVEAT = (
    "One model, one data set, one seed, at one point of training; times are those of "
    "this machine and of what else ran on it."
)


def register(commands: argparse._SubParsersAction) -> None:
    """Add `report` to the commands of a parser."""
    parser = options.command(
        commands,
        "report",
        "everything in one HTML page: which approximation to use, and why",
        "Compare, train, and write one self-contained page that can be read offline "
        "or sent to a colleague: which approximation to use, and what that rests on.",
    )
    options.add_fidelity(parser)
    options.add_race(parser, _OPTIMIZERS)
    parser.add_argument(
        "--repeat",
        type=int,
        metavar="N",
        help="run each optimizer from N more seeds at its best rate (default: 0)",
    )
    parser.add_argument(
        "--along",
        type=int,
        nargs="+",
        metavar="STEP",
        help="also compare after these steps of a run of Adam (default: none)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    go = lambda experiment: ReportPage(experiment, arguments.output).run()
    charts = 0 if arguments.quick else 1
    return options.start(arguments, go, {"optimizers": _OPTIMIZERS, "charts": charts})


class ReportPage(Session):
    """Compare, race, and write the page."""

    command = "report"

    def __init__(self, experiment: Experiment, output: Path):
        super().__init__(experiment, output)
        self._comparisons: dict[int, Comparison] = {}
        self._repeated: tuple[Repeated, ...] = ()

    def stages(self):
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

        def done(step: int, comparison: Comparison) -> None:
            self._comparisons[step] = comparison
            advance(f"after step {step}", 1)

        along(
            experiment.model,
            experiment.initial,
            *experiment.dataset.train,
            optimizer=optax.adam(APPROACH_RATE),
            steps=settings.along,
            approximations=settings.approximations if experiment.all_named else None,
            reference=settings.reference,
            damping=settings.damping,
            effort=Budget(repeats=1, charts=0),
            on_comparison=done,
        )

    def _repeat(self, advance: Advance) -> None:
        """The best runs from other seeds."""
        experiment, settings = self.experiment, self.experiment.settings
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
            found = verdict(self.comparison, self.race)
            self.report.verdict(found.headline, found.points)

    def save(self, *, complete: bool) -> None:
        """report.html and report.json."""
        found = verdict(self.comparison, self.race)
        record = self.description(complete=complete)
        steps = {step: c.to_dict() for step, c in self._comparisons.items()}
        record["along"] = steps or None
        record["repeated"] = [entry.to_dict() for entry in self._repeated] or None
        record["verdict"] = {"headline": found.headline, "points": list(found.points)}
        text = page.page(
            title=f"Which Fisher approximation? {self.subject()}",
            about=self._about(record),
            headline=found.headline,
            points=(*found.points, _CAVEAT),
            sections=self._sections(),
            warning="" if complete else "Unfinished: the rest was not run.",
        )
        self.file("report.json", lambda path: files.write_json(path, record))
        write = lambda file: file.write(text.encode())
        self.file("report.html", lambda path: files.write_atomically(path, write))

    def subject(self) -> str:
        """What was compared on what."""
        settings = self.experiment.settings
        return f"{settings.model} on {settings.data}"

    def _about(self, record: dict[str, Any]) -> list[str]:
        data, versions = record["data"], record["versions"]
        settings = record["settings"]
        return [
            f"{record['parameters']} parameters, {data['train_examples']} training and "
            f"{data['test_examples']} test examples, {record['dtype']}, damping λ = "
            f"{settings['damping']:g}, seed {settings['seed']}",
            f"natgrad {versions['natgrad']}, JAX {versions['jax']}, "
            f"{record['device']['kind']}; {record['seconds']:.0f} s. "
            "All figures: report.json, beside this page.",
        ]

    def _sections(self) -> list[Section]:
        sections = []
        if self.comparison is not None:
            sections += _comparison(self.comparison, self.experiment)
        if self.race is not None:
            sections.append(_race(self.race, self.experiment))
        if self._repeated:
            sections.append(_repeated(self._repeated))
        if self._comparisons:
            steps, comparisons = zip(*self._comparisons.items(), strict=True)
            sections.append(_along(Trace(steps, comparisons)))
        return sections


def _comparison(comparison: Comparison, experiment: Any) -> list[Section]:
    """Figures of the approximations."""
    step, shape, cost = columns.FIGURES
    used = {mark for row in comparison.rows for mark in columns.marks(row)}
    notes = [note for note in columns.NOTES if note[0] in used]
    show = lambda figure, caption: page.picture(figure, plots.save, caption)
    skipped = [
        page.paragraph(f"Left out: {name}: {reason}")
        for name, reason in comparison.skipped
    ]
    return [
        Section(
            "How far each step is from the exact one",
            (
                page.paragraph(
                    f"Each approximation A against F = {comparison.reference}, over "
                    f"all training data, after {experiment.settings.at_step} steps of "
                    "Adam: the matrix, the damped step (A + λI)⁻¹g, and what the step "
                    "does to the loss and to the predictions."
                ),
                page.table(step, comparison.rows, notes),
                *skipped,
                show(
                    plots.fidelity(comparison, experiment),
                    "Error of each matrix; length and angle of its step; what it "
                    "predicts and what happens; time and memory.",
                ),
                show(
                    plots.quadratic(comparison),
                    "KL divergence by step size: as the quadratic model predicts it, "
                    "and as it is.",
                ),
            ),
        ),
        Section(
            "Where it differs: spectra and blocks",
            (
                page.table(shape, comparison.rows),
                show(
                    plots.spectra(comparison),
                    "Eigenvalues of F and of each approximation, and the range of "
                    "their ratio.",
                ),
                show(
                    plots.blocks(comparison),
                    "Error, divergence and step, block by block.",
                ),
                page.table(columns.BLOCKS, comparison.by_block()),
            ),
        ),
        Section("What a step costs", (page.table(cost, comparison.rows),)),
    ]


def _race(race: Race, experiment: Any) -> Section:
    """Training with each of them."""
    return Section(
        "Training",
        (
            page.paragraph(
                f"{race.steps} steps of {race.batch_size} examples; each optimizer "
                f"with {experiment.settings.rates} learning rates half a decade "
                "apart, the best chosen by training loss. A curvature's name stands "
                "for the step −η (A + λI)⁻¹g with A of the current batch; sgd and "
                "adam are optax's."
            ),
            page.table(columns.RACE, race.entries),
            page.picture(
                plots.training(race, experiment),
                plots.save,
                "Loss and score by step and by second at each optimizer's best "
                "learning rate, and how its final loss depends on the rate.",
            ),
        ),
    )


def _repeated(entries: tuple[Repeated, ...]) -> Section:
    """Training from other seeds."""
    words = (
        f"Each optimizer at its best learning rate from {len(entries[0].runs)} other "
        "seeds: medians, and bands from quartile to quartile."
    )
    shown = page.picture(plots.bands(entries), plots.save, words)
    return Section("Training from other seeds", (shown,))


def _along(trace: Trace) -> Section:
    """The figures along a run."""
    steps = ", ".join(map(str, trace.steps))
    words = (
        f"The same figures after {steps} steps of Adam on all training data: where "
        "each approximation breaks down."
    )
    shown = page.picture(plots.along(trace), plots.save, words)
    return Section("Along training", (shown,))

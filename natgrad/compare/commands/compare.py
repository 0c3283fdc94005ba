"""`natgrad compare`: approximations against the exact Fisher, then a race.

Writes comparison.json, fidelity.png and training.png. What is finished when the person
presses Ctrl-C is kept; no file is ever there by half.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import time
from pathlib import Path

from natgrad.compare import files, plots
from natgrad.compare.commands.shared import (
    INTERRUPTED,
    UsageError,
    add_output,
    numerics,
)
from natgrad.compare.comparison import Comparison
from natgrad.compare.contenders import BASELINES
from natgrad.compare.data import SOURCES
from natgrad.compare.experiment import QUICK, Experiment, Settings, surroundings
from natgrad.compare.extras import require
from natgrad.compare.models import MODELS
from natgrad.compare.progress import progress
from natgrad.compare.report import Report
from natgrad.compare.standings import Race
from natgrad.compare.training import race
from natgrad.curvature import CURVATURES

_EPILOG = """\
The figures are taken after a few steps of Adam (--at-step): at initial parameters
predictions are nearly uniform and approximations look alike. Losses and divergences
are means over examples, in nats.
"""


def register(commands: argparse._SubParsersAction) -> None:
    """Add `compare` to the commands of a parser."""
    parser = commands.add_parser(
        "compare",
        help="approximations of the Fisher information against the exact one",
        description="Measure every approximation of the Fisher information against "
        "the exact one, then train with optimizers built from them.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("--data", help=f"one of {', '.join(SOURCES)} (default: digits)")
    add("--model", help=f"one of {', '.join(MODELS)} (default: mlp)")
    add(
        "--hidden",
        type=int,
        nargs="+",
        metavar="WIDTH",
        help="widths of the mlp's hidden layers (default: 16)",
    )
    add("--examples", type=int, metavar="N", help="rows of the data (default: all)")
    add("--damping", type=float, help="λ added to every Fisher (default: 0.001)")
    add(
        "--at-step",
        type=int,
        metavar="STEP",
        help="steps of Adam before comparing (default: 20)",
    )
    add(
        "--approximations",
        nargs="+",
        metavar="NAME",
        help=f"some of {', '.join(CURVATURES)} (default: all)",
    )
    add("--reference", metavar="NAME", help="what counts as exact (default: dense)")
    add(
        "--optimizers",
        nargs="+",
        metavar="NAME",
        help=f"who races: approximations, {', '.join(BASELINES)} "
        f"(default: {' '.join(Settings.optimizers)})",
    )
    add("--steps", type=int, help="of each training run (default: 30)")
    add("--batch-size", type=int, metavar="N", help="examples a step (default: 256)")
    add("--rates", type=int, help="learning rates for each optimizer (default: 6)")
    add("--seed", type=int, help="of split, weights, batches and draws (default: 0)")
    add_output(parser, "natgrad-compare")
    add("--x64", action="store_true", help="compute in float64")
    add("--quick", action="store_true", help="a small model and few steps: a look")


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code.

    Raises:
        UsageError: for names and numbers that make no sense.
        MissingExtra: where rich, matplotlib or scikit-learn is not installed.
    """
    for module in ("rich", "matplotlib"):
        require(module)
    files.check_directory(arguments.output)
    with numerics(x64=arguments.x64):
        try:
            experiment = Experiment.of(_settings(arguments))
        except ValueError as error:
            raise UsageError(str(error)) from error
        return Session(experiment, arguments.output).run()


def _settings(arguments: argparse.Namespace) -> Settings:
    """The defaults, or those of --quick, with what was given on the command line."""
    given = {
        field.name: getattr(arguments, field.name, None)
        for field in dataclasses.fields(Settings)
    }
    given = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in given.items()
        if value is not None
    }
    return dataclasses.replace(QUICK if arguments.quick else Settings(), **given)


class Session:
    """One run of the command: what is finished so far, and where it goes."""

    def __init__(self, experiment: Experiment, output: Path):
        self._experiment = experiment
        self._output = output
        self._start = time.perf_counter()
        self._surroundings = surroundings()
        self._report = Report()
        self._comparison: Comparison | None = None
        self._race: Race | None = None
        self._written: list[str] = []

    def run(self) -> int:
        """Compare, race, and write; the exit code."""
        settings = self._experiment.settings
        self._report.opening(self._experiment, self._surroundings)
        racing = len(settings.optimizers) * settings.rates
        parts = 1 + len(settings.approximations) + racing
        try:
            with progress(parts) as advance:
                self._compare(advance)
            self._report.fidelity(self._comparison, self._experiment)
            self._save(complete=False)
            with progress(parts) as advance:
                advance("training", parts - racing)
                self._train(advance)
            self._report.race(self._race, self._experiment)
            self._save(complete=True)
        except KeyboardInterrupt:
            return self._interrupted()
        self._report.closing(self._written, self._seconds())
        return 0

    def _compare(self, advance) -> None:
        advance(f"exact: {self._experiment.settings.reference}", 0)
        yardstick = self._experiment.yardstick()
        rows = []
        done = 1
        try:
            for name in self._experiment.settings.approximations:
                advance(name, done)
                rows.append(yardstick.row(name))
                done = 1
        finally:
            if rows:
                self._comparison = yardstick.comparison(rows)

    def _train(self, advance) -> None:
        experiment, settings = self._experiment, self._experiment.settings
        entries = []
        batch_size = min(settings.batch_size, experiment.dataset.train[0].shape[0])
        try:
            race(
                experiment.model,
                experiment.initial,
                experiment.dataset.train,
                experiment.dataset.test,
                score=experiment.dataset.score,
                names=settings.optimizers,
                steps=settings.steps,
                batch_size=batch_size,
                rates=settings.rates,
                damping=settings.damping,
                seed=settings.seed,
                on_run=lambda name: advance(f"training {name}", 1),
                on_entry=entries.append,
            )
        finally:
            if entries:
                self._race = Race(
                    tuple(entries), settings.steps, batch_size, settings.damping
                )

    def _interrupted(self) -> int:
        """Keep what is finished; a second Ctrl-C gives that up too."""
        with contextlib.suppress(KeyboardInterrupt):
            if self._comparison is not None:
                self._save(complete=False)
        kept = f"kept {', '.join(self._written)}" if self._written else "wrote nothing"
        print(f"natgrad compare: interrupted, {kept}", file=sys.stderr)
        return INTERRUPTED

    def _save(self, *, complete: bool) -> None:
        """Write what is finished; files of an earlier run that it replaces go."""
        pictures = {
            "fidelity.png": (self._comparison, plots.fidelity),
            "training.png": (self._race, plots.training),
        }
        for name, (result, draw) in pictures.items():
            path = self._output / name
            if result is None:
                path.unlink(missing_ok=True)
            elif str(path) not in self._written:
                figure = draw(result, self._experiment)
                files.write_atomically(path, lambda f, g=figure: plots.save(g, f))
                self._written.append(str(path))
        path = self._output / "comparison.json"
        files.write_json(path, self._record(complete))
        if str(path) not in self._written:
            self._written.insert(0, str(path))

    def _record(self, complete: bool) -> dict:
        return {
            "format": "natgrad.compare/1",
            "complete": complete,
            "seconds": self._seconds(),
            **self._surroundings,
            **self._experiment.describe(),
            "fidelity": self._comparison and self._comparison.to_dict(),
            "training": self._race and self._race.to_dict(),
        }

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

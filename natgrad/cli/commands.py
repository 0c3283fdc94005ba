"""`natgrad compare`, `race`, `spectrum`, `doctor`: what each runs, what it writes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np

from natgrad.cli import data, models
from natgrad.cli.experiment import approach
from natgrad.cli.options import (
    OF_FIDELITY,
    OF_MODEL,
    OF_RACE,
    ComparingCommand,
    ModelCommand,
    takes,
)
from natgrad.cli.session import Session, Stage
from natgrad.compare import plots
from natgrad.compare.doctor import Diagnosis, doctor

# Characters a line of the doctor's.
_WIDTH = 80


class FullCompareSession(Session):
    """Compare, race, and write."""

    command, file = "compare", "comparison.json"
    pictures: ClassVar = {
        "fidelity.png": Session.fidelity_figure,
        "training.png": Session.training_figure,
    }


class CompareSession(FullCompareSession):
    """The same with one table on the terminal."""

    def show(self) -> None:
        """The table and the verdict, once all is there."""
        if self.comparison is not None and self.race is not None:
            self.report.summary(self.comparison, self.race)
            self.report.verdict(self.verdict())


class RaceSession(Session):
    """Race, and write."""

    command, file = "race", "race.json"
    pictures: ClassVar = {"training.png": Session.training_figure}

    def stages(self) -> list[Stage]:
        """One."""
        return [self.train()]


class SpectrumSession(Session):
    """Measure, and write the eigenvalues."""

    command, file = "spectrum", "spectrum.json"
    pictures: ClassVar = {
        "spectra.png": lambda self: self.comparison and plots.spectra(self.comparison)
    }

    def stages(self) -> list[Stage]:
        """One."""
        return [self.compare()]


@takes(
    *(*OF_MODEL, "output", *OF_FIDELITY, *OF_RACE, "full"),
    output=Path("natgrad-compare"),
)
class Compare(ComparingCommand):
    """Measure approximations of the Fisher against the exact one.

    Measure every approximation of the Fisher information against the exact one, then
    train with optimizers built from them.
    """

    full: bool

    @property
    def session(self) -> type[Session]:
        """Of one table, or of all."""
        return FullCompareSession if self.full else CompareSession


@takes(*OF_MODEL, "output", *OF_RACE, output=Path("natgrad-race"))
class Race(ComparingCommand):
    """Train with optimizers built from approximations.

    Train with each optimizer at as many learning rates, and compare the best runs by
    step and by second.
    """

    session = RaceSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is compared, so nothing leads to where."""
        return {"at_step": 0}


@takes(*OF_MODEL, "output", *OF_FIDELITY, output=Path("natgrad-spectrum"))
class Spectrum(ComparingCommand):
    """Eigenvalues of the Fisher information and its approximations.

    Eigenvalues of the exact Fisher, of its approximations, and of their ratio: which
    directions an approximation thinks too much or too little of.
    """

    session = SpectrumSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is raced, nothing is timed with care."""
        return {"charts": 0, "repeats": 1, "optimizers": ()}


@takes(*OF_MODEL, "at_step", "batch_size")
class Doctor(ModelCommand):
    """Which optimizer to use for a model, and why: five lines.

    Check a batch, read the layers, and measure gradient noise and curvature. Nothing
    is trained to the end and nothing is written.
    """

    def carry_out(self) -> int:
        """Print the five lines; the exit code."""
        for line in str(self._diagnosis()).splitlines():
            print(textwrap.fill(line, _WIDTH, subsequent_indent="    "))
        return 0

    def _diagnosis(self) -> Diagnosis:
        settings = self.settings()
        dataset = data.load(settings.data, seed=settings.seed, limit=settings.examples)
        self.check_counts(dataset)
        model, params = models.build(
            settings.model, dataset, settings.hidden, settings.seed
        )
        params = approach(model, params, *dataset.train, steps=settings.at_step)
        order = np.random.default_rng(settings.seed).permutation(len(dataset.train[0]))
        rows = order[: settings.batch_size]
        inputs, targets = (array[rows] for array in dataset.train)
        key = jax.random.PRNGKey(settings.seed)
        return doctor(model, params, inputs, targets, damping=settings.damping, key=key)

"""`natgrad compare`, `race` and `spectrum`: what each runs, and what it writes.

compare writes comparison.json, fidelity.png and training.png; race writes race.json and
training.png; spectrum writes spectrum.json and spectra.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from natgrad.cli.options import CompareOptions, FidelityOptions, Output, RaceOptions
from natgrad.cli.session import Session, Stage
from natgrad.compare import plots


class FullCompareSession(Session):
    """Compare, race, and write."""

    command = "compare"

    def stages(self) -> list[Stage]:
        """Both."""
        return [self.compare(), self.train()]

    def save(self, *, complete: bool) -> None:
        """Pictures and comparison.json."""
        self.picture("fidelity.png", self.comparison, self.fidelity_figure)
        self.picture("training.png", self.race, self.training_figure)
        self.record("comparison.json", self.description(complete=complete))


class CompareSession(FullCompareSession):
    """The same with one table on the terminal."""

    def show(self) -> None:
        """The table and the verdict, once all is there."""
        if self.comparison is not None and self.race is not None:
            self.report.summary(self.comparison, self.race)
            self.report.verdict(self.verdict())


class RaceSession(Session):
    """Race, and write."""

    command = "race"

    def stages(self) -> list[Stage]:
        """One."""
        return [self.train()]

    def save(self, *, complete: bool) -> None:
        """training.png and race.json."""
        self.picture("training.png", self.race, self.training_figure)
        self.record("race.json", self.description(complete=complete))


class SpectrumSession(Session):
    """Measure, and write the eigenvalues."""

    command = "spectrum"

    def stages(self) -> list[Stage]:
        """One."""
        return [self.compare()]

    def save(self, *, complete: bool) -> None:
        """spectra.png and spectrum.json."""
        self.picture("spectra.png", self.comparison, plots.spectra)
        self.record("spectrum.json", self.description(complete=complete))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(RaceOptions, FidelityOptions, CompareOptions):
    """Measure approximations of the Fisher against the exact one.

    Measure every approximation of the Fisher information against the exact one, then
    train with optimizers built from them.
    """

    output: Output = Path("natgrad-compare")
    full: Annotated[
        bool, typer.Option("--full", help="all figures, in four tables")
    ] = False

    @property
    def session(self) -> type[Session]:
        """Of one table, or of all."""
        return FullCompareSession if self.full else CompareSession


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race(RaceOptions, CompareOptions):
    """Train with optimizers built from approximations.

    Train with each optimizer at as many learning rates, and compare the best runs by
    step and by second.
    """

    output: Output = Path("natgrad-race")

    session = RaceSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is compared, so nothing leads to where."""
        return {"at_step": 0}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum(FidelityOptions, CompareOptions):
    """Eigenvalues of the Fisher information and its approximations.

    Eigenvalues of the exact Fisher, of its approximations, and of their ratio: which
    directions an approximation thinks too much or too little of.
    """

    output: Output = Path("natgrad-spectrum")

    session = SpectrumSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is raced, nothing is timed with care."""
        return {"charts": 0, "repeats": 1, "optimizers": ()}

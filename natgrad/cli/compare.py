"""`natgrad compare`: approximations against the exact Fisher, then a race.

Writes comparison.json, fidelity.png and training.png.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from natgrad.cli import files
from natgrad.cli.options import CompareOptions, FidelityOptions, Output, RaceOptions
from natgrad.cli.session import Session, Stage


class CompareSession(Session):
    """Compare, race, and write."""

    command = "compare"

    def stages(self) -> list[Stage]:
        """Both."""
        return [self.compare(), self.train()]

    def save(self, *, complete: bool) -> None:
        """Pictures and comparison.json."""
        self.picture("fidelity.png", self.comparison, self.fidelity_figure)
        self.picture("training.png", self.race, self.training_figure)
        record = self.description(complete=complete)
        self.file("comparison.json", lambda path: files.write_json(path, record))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compare(RaceOptions, FidelityOptions, CompareOptions):
    """Measure every approximation of the Fisher information against the exact one,
    then train with optimizers built from them.
    """

    output: Output = Path("natgrad-compare")

    session = CompareSession

"""`natgrad race`: train with optimizers built from curvatures, and with others.

Writes race.json and training.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natgrad.cli import files
from natgrad.cli.options import CompareOptions, Output, RaceOptions
from natgrad.cli.session import Session, Stage


class RaceSession(Session):
    """Race, and write."""

    command = "race"

    def stages(self) -> list[Stage]:
        """One."""
        return [self.train()]

    def save(self, *, complete: bool) -> None:
        """training.png and race.json."""
        self.picture("training.png", self.race, self.training_figure)
        record = self.description(complete=complete)
        self.file("race.json", lambda path: files.write_json(path, record))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Race(RaceOptions, CompareOptions):
    """Train with each optimizer at as many learning rates, and compare the best runs
    by step and by second.
    """

    output: Output = Path("natgrad-race")

    session = RaceSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is compared, so nothing leads to where."""
        return {"at_step": 0}

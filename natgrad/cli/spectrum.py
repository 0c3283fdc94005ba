"""`natgrad spectrum`: eigenvalues of the Fisher information and its approximations.

Writes spectrum.json and spectra.png.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from natgrad.cli import files
from natgrad.cli.options import CompareOptions, FidelityOptions, Output
from natgrad.cli.session import Session, Stage
from natgrad.compare import plots


class SpectrumSession(Session):
    """Measure, and write the eigenvalues."""

    command = "spectrum"

    def stages(self) -> list[Stage]:
        """One."""
        return [self.compare()]

    def save(self, *, complete: bool) -> None:
        """spectra.png and spectrum.json."""
        self.picture("spectra.png", self.comparison, plots.spectra)
        record = self.description(complete=complete)
        self.file("spectrum.json", lambda path: files.write_json(path, record))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spectrum(FidelityOptions, CompareOptions):
    """Eigenvalues of the exact Fisher, of its approximations, and of their ratio: which
    directions an approximation thinks too much or too little of.
    """

    output: Output = Path("natgrad-spectrum")

    session = SpectrumSession

    def defaults(self) -> Mapping[str, Any]:
        """Nothing is raced, nothing is timed with care."""
        return {"charts": 0, "repeats": 1, "optimizers": ()}

"""`natgrad spectrum`: eigenvalues of the Fisher information and its approximations.

Writes spectrum.json and spectra.png.
"""

from __future__ import annotations

import argparse
import functools

from natgrad.cli import files, options
from natgrad.cli.session import Session
from natgrad.compare import plots


def register(commands: argparse._SubParsersAction) -> None:
    """Add `spectrum` to the commands of a parser."""
    parser = options.command(
        commands,
        "spectrum",
        "eigenvalues of the Fisher information and its approximations",
        "Eigenvalues of the exact Fisher, of its approximations, and of their ratio: "
        "which directions an approximation thinks too much or too little of.",
    )
    options.add_fidelity(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    go = lambda experiment: Spectrum(experiment, arguments.output).run()
    return options.start(arguments, go, {"charts": 0, "repeats": 1, "optimizers": ()})


class Spectrum(Session):
    """Measure, and write the eigenvalues."""

    command = "spectrum"

    def stages(self):
        """One."""
        return [self.compare()]

    def save(self, *, complete: bool) -> None:
        """spectra.png and spectrum.json."""
        comparison = self.comparison
        draw = functools.partial(plots.spectra, comparison)
        self.picture("spectra.png", comparison, draw)
        record = self.description(complete=complete)
        self.file("spectrum.json", lambda path: files.write_json(path, record))

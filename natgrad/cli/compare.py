"""`natgrad compare`: approximations against the exact Fisher, then a race.

Writes comparison.json, fidelity.png and training.png.
"""

from __future__ import annotations

import argparse
import functools

from natgrad.cli import files, options
from natgrad.cli.session import Session
from natgrad.compare import plots
from natgrad.compare.contenders import DEFAULT


def register(commands: argparse._SubParsersAction) -> None:
    """Add `compare` to the commands of a parser."""
    parser = options.command(
        commands,
        "compare",
        "approximations of the Fisher information against the exact one",
        "Measure every approximation of the Fisher information against the exact one, "
        "then train with optimizers built from them.",
    )
    options.add_fidelity(parser)
    options.add_race(parser, DEFAULT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    go = lambda experiment: Compare(experiment, arguments.output).run()
    return options.start(arguments, go)


class Compare(Session):
    """Compare, race, and write."""

    command = "compare"

    def stages(self):
        """Both."""
        return [self.compare(), self.train()]

    def save(self, *, complete: bool) -> None:
        """Pictures and comparison.json."""
        comparison, race, experiment = self.comparison, self.race, self.experiment
        draw = functools.partial
        self.picture(
            "fidelity.png", comparison, draw(plots.fidelity, comparison, experiment)
        )
        self.picture("training.png", race, draw(plots.training, race, experiment))
        record = self.description(complete=complete)
        self.file("comparison.json", lambda path: files.write_json(path, record))

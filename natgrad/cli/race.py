"""`natgrad race`: train with optimizers built from curvatures, and with others.

Writes race.json and training.png.
"""

from __future__ import annotations

import argparse
import functools

from natgrad.cli import files, options
from natgrad.cli.session import Session
from natgrad.compare import plots
from natgrad.compare.contenders import DEFAULT


def register(commands: argparse._SubParsersAction) -> None:
    """Add `race` to the commands of a parser."""
    parser = options.command(
        commands,
        "race",
        "train with optimizers built from approximations",
        "Train with each optimizer at as many learning rates, and compare the best "
        "runs by step and by second.",
    )
    options.add_race(parser, DEFAULT)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; the exit code."""
    go = lambda experiment: RaceOnly(experiment, arguments.output).run()
    return options.start(arguments, go, {"at_step": 0})


class RaceOnly(Session):
    """Race, and write."""

    command = "race"

    def stages(self):
        """One."""
        return [self.train()]

    def save(self, *, complete: bool) -> None:
        """training.png and race.json."""
        draw = functools.partial(plots.training, self.race, self.experiment)
        self.picture("training.png", self.race, draw)
        record = self.description(complete=complete)
        self.file("race.json", lambda path: files.write_json(path, record))

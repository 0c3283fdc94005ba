"""One run of a command that compares: its stages, what is finished, where it goes.

What is finished when the person presses Ctrl-C is kept; no file is ever there by half.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from natgrad.cli.experiment import Experiment, surroundings
from natgrad.cli.shared import INTERRUPTED, json_bytes, write_atomically
from natgrad.cli.terminal import Advance, Report, progress
from natgrad.compare import plots
from natgrad.compare.comparison import Comparison, Verdict, together
from natgrad.compare.row import Row
from natgrad.compare.runs import Entry, Race
from natgrad.compare.training import RaceSettings, race

# (parts, what to do); each part is an approximation or a run.
Stage = tuple[int, Callable[[Advance], None]]


class Session:
    """Stages that run in order; each is saved when it ends."""

    command: str
    file: str  # where the record goes, as JSON
    # File -> what draws it, or gives None while its result is not there.
    pictures: Mapping[str, Callable[[Any], Any]] = {}

    def __init__(self, experiment: Experiment, output: Path):
        self.experiment = experiment
        # As far as they are finished.
        self.comparison: Comparison | None = None
        self.race: Race | None = None
        self.surroundings = surroundings()
        self.report = Report()
        self._output = output
        self._start = time.perf_counter()
        self._written: dict[Path, None] = {}  # in order

    def run(self) -> int:
        """Run all stages; the exit code."""
        self.report.opening(self.experiment, self.surroundings)
        waiting = self.stages()
        try:
            while waiting:
                parts, stage = waiting.pop(0)
                with progress(parts) as advance:
                    stage(advance)
                self.show()
                self.save(complete=not waiting)
        except KeyboardInterrupt:
            return self._interrupted()
        names = ", ".join(path.name for path in self._files())
        seconds = time.perf_counter() - self._start
        self.report.closing(f"Wrote {names} to {self._output} in {seconds:.0f} s.")
        return 0

    def compare(self) -> Stage:
        """The stage that measures approximations."""
        names = self.experiment.setup.names

        def stage(advance: Advance) -> None:
            advance("the exact Fisher", 0)
            reference = self.experiment.reference()
            advance("the exact Fisher", 1)
            measured: dict[str, Row | str] = {}
            try:
                for name in names:
                    advance(name, 0)
                    measured[name] = reference.row_or_reason(name)
                    advance(name, 1)
            except KeyboardInterrupt:
                if any(isinstance(row, Row) for row in measured.values()):
                    self.comparison = reference.comparison(measured)
                raise
            self.comparison = reference.comparison(measured)

        return 1 + len(names), stage

    def train(self) -> Stage:
        """The stage that races optimizers."""
        settings, data = self.experiment.settings, self.experiment.dataset
        names = [field.name for field in dataclasses.fields(RaceSettings)]
        shared = RaceSettings(**{name: getattr(settings, name) for name in names})
        size = min(settings.batch_size, len(data.train[0]))

        def stage(advance: Advance) -> None:
            entries: list[Entry] = []

            def on_run(entry: Entry) -> None:
                if len(entry.runs) == settings.rates:
                    entries.append(entry)
                advance(f"training {entry.name}", 1)

            advance("training", 0)
            try:
                race(
                    self.experiment.model,
                    self.experiment.initial,
                    data.train,
                    data.test,
                    score=data.score,
                    names=settings.optimizers,
                    settings=shared,
                    on_run=on_run,
                )
            finally:
                if entries:
                    self.race = Race(
                        tuple(entries), settings.steps, size, shared.damping
                    )

        return len(settings.optimizers) * settings.rates, stage

    # What each stage is made by.
    plan: tuple[Callable[[Any], Stage], ...] = (compare, train)

    def stages(self) -> list[Stage]:
        """What to do, in order."""
        return [stage(self) for stage in self.plan]

    def show(self) -> None:
        """What has just been finished, on the terminal; at the end the verdict."""
        if self.race is not None:
            self.report.race(self.race, self.experiment)
            self.report.verdict(self.verdict())
        elif self.comparison is not None:
            self.report.fidelity(self.comparison, self.experiment)

    def verdict(self) -> Verdict:
        """Of what is finished."""
        finished = [part for part in (self.race, self.comparison) if part is not None]
        return together(*(part.verdict() for part in finished))

    def fidelity_figure(self) -> Any:
        """The picture of the approximations."""
        about = f"after {self.experiment.settings.at_step} steps of Adam"
        title = f"{self.experiment.subject}, {about}"
        return self.comparison and plots.fidelity(self.comparison, title=title)

    def training_figure(self) -> Any:
        """The picture of the race."""
        title = f"Training: {self.experiment.subject}"
        score = self.experiment.dataset.score_name
        return self.race and plots.training(self.race, title=title, score=score)

    def save(self, *, complete: bool) -> None:
        """Write what is finished, perhaps all; an older picture of what is not goes."""
        for name, draw in self.pictures.items():
            if self._output / name in self._written:
                continue
            figure = draw(self)
            if figure is None:
                (self._output / name).unlink(missing_ok=True)
            else:
                self.write(name, functools.partial(plots.save, figure))
        record = self.description(complete=complete)
        self.write(self.file, lambda file: file.write(json_bytes(record)))

    def write(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file of this name, which `write` fills."""
        write_atomically(self._output / name, write)
        self._written[self._output / name] = None

    def description(self, *, complete: bool) -> dict[str, Any]:
        """What was done where, and all results, as plain Python values."""
        return {
            "format": f"natgrad.{self.command}/1",
            "complete": complete,
            "seconds": time.perf_counter() - self._start,
            **self.surroundings,
            **self.experiment.describe(),
            "fidelity": self.comparison and self.comparison.to_dict(),
            "training": self.race and self.race.to_dict(),
        }

    def _files(self) -> list[Path]:
        """What was written, pictures last."""
        return sorted(self._written, key=lambda path: path.suffix)

    def _interrupted(self) -> int:
        """Keep what is finished; a second Ctrl-C gives that up too."""
        with contextlib.suppress(KeyboardInterrupt):
            if self.comparison is not None or self.race is not None:
                self.save(complete=False)
        kept = ", ".join(map(str, self._files()))
        kept = f"kept {kept}" if kept else "wrote nothing"
        print(f"natgrad {self.command}: interrupted, {kept}", file=sys.stderr)
        return INTERRUPTED

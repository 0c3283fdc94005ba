"""One run of a command that compares: its stages, what is finished, where it goes.

What is finished when the person presses Ctrl-C is kept; no file is ever there by half.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from natgrad.cli.experiment import Experiment, surroundings
from natgrad.cli.shared import INTERRUPTED, write_atomically, write_json
from natgrad.cli.terminal import Advance, Report, progress
from natgrad.compare import plots
from natgrad.compare.comparison import Comparison
from natgrad.compare.row import Row
from natgrad.compare.runs import Entry, Race
from natgrad.compare.training import RaceSettings, race
from natgrad.compare.verdict import Verdict, together

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
        self._written: list[str] = []

    def stages(self) -> list[Stage]:
        """What to do, in order."""
        return [self.compare(), self.train()]

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
        seconds = time.perf_counter() - self._start
        self.report.closing(self._output, self._written, seconds)
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
        shared = RaceSettings(
            steps=settings.steps,
            batch_size=min(settings.batch_size, len(data.train[0])),
            rates=settings.rates,
            damping=settings.damping,
            seed=settings.seed,
        )

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
                steps, batch_size = shared.steps, shared.batch_size
                if entries:
                    self.race = Race(tuple(entries), steps, batch_size, shared.damping)

        return len(settings.optimizers) * settings.rates, stage

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
        """Write what is finished; an older picture of what is not goes.

        Args:
            complete: is that all?
        """
        for name, draw in self.pictures.items():
            path = self._output / name
            if str(path) in self._written:
                continue
            figure = draw(self)
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            write_atomically(path, lambda file, figure=figure: plots.save(figure, file))
            self._written.append(str(path))
        record = self.description(complete=complete)
        self.write(self.file, lambda path: write_json(path, record))

    def write(self, name: str, write: Callable[[Path], None]) -> None:
        """Write a file, again at every save.

        Args:
            name: of the file.
            write: path -> nothing.
        """
        path = self._output / name
        write(path)
        if str(path) not in self._written:
            self._written.insert(0, str(path))

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

    def _interrupted(self) -> int:
        """Keep what is finished; a second Ctrl-C gives that up too."""
        with contextlib.suppress(KeyboardInterrupt):
            if self.comparison is not None or self.race is not None:
                self.save(complete=False)
        kept = f"kept {', '.join(self._written)}" if self._written else "wrote nothing"
        print(f"natgrad {self.command}: interrupted, {kept}", file=sys.stderr)
        return INTERRUPTED

"""One run of a command that compares: its stages, what is finished, where it goes.

What is finished when the person presses Ctrl-C is kept; no file is ever there by half.
"""

from __future__ import annotations

import abc
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from natgrad.cli import files
from natgrad.cli.experiment import Experiment, surroundings
from natgrad.cli.progress import Advance, progress
from natgrad.cli.shared import INTERRUPTED
from natgrad.cli.terminal import Report
from natgrad.compare import plots
from natgrad.compare.comparison import Comparison
from natgrad.compare.runs import Entry, Race
from natgrad.compare.training import RaceSettings, race
from natgrad.compare.verdict import Verdict, together
from natgrad.layers import NotCapturedError
from natgrad.model.errors import DoesNotFitError

# (parts, what to do); each part is an approximation or a run.
Stage = tuple[int, Callable[[Advance], None]]

Result = TypeVar("Result")


class Session(abc.ABC):
    """Stages that run in order; each is saved when it ends.

    Attributes:
        command: the name of the command.
        comparison: of approximations, as far as it is finished.
        race: of optimizers, as far as it is finished.
    """

    command: str

    def __init__(self, experiment: Experiment, output: Path):
        self.experiment = experiment
        self.comparison: Comparison | None = None
        self.race: Race | None = None
        self.surroundings = surroundings()
        self.report = Report()
        self._output = output
        self._start = time.perf_counter()
        self._written: list[str] = []

    @abc.abstractmethod
    def stages(self) -> list[Stage]:
        """What to do, in order."""

    @abc.abstractmethod
    def save(self, *, complete: bool) -> None:
        """Write what is finished."""

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
        self.report.closing(self._output, self._written, self.seconds())
        return 0

    def compare(self) -> Stage:
        """The stage that measures approximations."""
        setup = self.experiment.setup

        def stage(advance: Advance) -> None:
            rows, skipped = [], []
            advance("the exact Fisher", 0)
            reference = self.experiment.reference()
            advance("the exact Fisher", 1)
            try:
                for name in setup.names:
                    advance(name, 0)
                    try:
                        rows.append(reference.row(name))
                    except (DoesNotFitError, NotCapturedError) as error:
                        if setup.all_named:
                            raise
                        skipped.append((name, str(error)))
                    advance(name, 1)
            finally:
                if rows:
                    self.comparison = reference.comparison(rows, skipped)
            if not rows:
                reasons = "; ".join(reason for _, reason in skipped)
                raise ValueError(f"No approximation can be measured: {reasons}")

        return 1 + len(setup.names), stage

    def train(self) -> Stage:
        """The stage that races optimizers."""
        experiment, settings = self.experiment, self.experiment.settings
        data = experiment.dataset
        shared = RaceSettings(
            steps=settings.steps,
            batch_size=min(settings.batch_size, len(data.train[0])),
            rates=settings.rates,
            damping=settings.damping,
            seed=settings.seed,
        )

        def stage(advance: Advance) -> None:
            entries = []

            def on_run(entry: Entry) -> None:
                if len(entry.runs) == settings.rates:
                    entries.append(entry)
                advance(f"training {entry.name}", 1)

            advance("training", 0)
            try:
                race(
                    experiment.model,
                    experiment.initial,
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

    def fidelity_figure(self, comparison: Comparison) -> Any:
        """The picture of the approximations."""
        about = f"after {self.experiment.settings.at_step} steps of Adam"
        title = f"{self.experiment.subject}, {about}"
        return plots.fidelity(comparison, title=title)

    def training_figure(self, race: Race) -> Any:
        """The picture of the race."""
        title = f"Training: {self.experiment.subject}"
        score = self.experiment.dataset.score_name
        return plots.training(race, title=title, score=score)

    def picture(
        self, name: str, result: Result | None, draw: Callable[[Result], Any]
    ) -> None:
        """Write a picture once its result is there; an older one of it goes."""
        path = self._output / name
        if result is None:
            path.unlink(missing_ok=True)
        elif str(path) not in self._written:
            figure = draw(result)
            files.write_atomically(path, lambda file: plots.save(figure, file))
            self._written.append(str(path))

    def record(self, name: str, description: dict[str, Any]) -> None:
        """Write JSON, again at every save."""
        self._write(name, lambda path: files.write_json(path, description))

    def file(self, name: str, write: Callable[[BinaryIO], object]) -> None:
        """Write a file, again at every save."""
        self._write(name, lambda path: files.write_atomically(path, write))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        path = self._output / name
        write(path)
        if str(path) not in self._written:
            self._written.insert(0, str(path))

    def description(self, *, complete: bool) -> dict[str, Any]:
        """What was done where, and all results, as plain Python values."""
        return {
            "format": f"natgrad.{self.command}/1",
            "complete": complete,
            "seconds": self.seconds(),
            **self.surroundings,
            **self.experiment.describe(),
            "fidelity": self.comparison and self.comparison.to_dict(),
            "training": self.race and self.race.to_dict(),
        }

    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def _interrupted(self) -> int:
        """Keep what is finished; a second Ctrl-C gives that up too."""
        with contextlib.suppress(KeyboardInterrupt):
            if self.comparison is not None or self.race is not None:
                self.save(complete=False)
        kept = f"kept {', '.join(self._written)}" if self._written else "wrote nothing"
        print(f"natgrad {self.command}: interrupted, {kept}", file=sys.stderr)
        return INTERRUPTED

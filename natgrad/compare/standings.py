"""The record of a race: runs, each contender's entry, and the whole.

What is run and what counts as best stands in `natgrad.compare.training`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any


@dataclasses.dataclass(frozen=True)
class Run:
    """One learning rate's run; each list starts with the initial parameters.

    Attributes:
        learning_rate: η.
        seconds: since the start, compiling and evaluating left out.
        train_loss: over all training data, nats.
        test_loss: nats.
        score: on the test data; see `Score`.
    """

    learning_rate: float
    seconds: list[float]
    train_loss: list[float]
    test_loss: list[float]
    score: list[float]

    @property
    def failed(self) -> bool:
        """Is some loss not finite, or the last above the first?"""
        finite = all(map(math.isfinite, self.train_loss))
        return not finite or self.train_loss[-1] > self.train_loss[0]

    @property
    def final_train_loss(self) -> float:
        """The last training loss."""
        return self.train_loss[-1]

    @property
    def final_test_loss(self) -> float:
        """The last test loss."""
        return self.test_loss[-1]

    @property
    def final_score(self) -> float:
        """The last test score."""
        return self.score[-1]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One contender's runs.

    Attributes:
        name: of the contender.
        runs: in the order of the learning rates.
        compile_seconds: of one segment of steps.
    """

    name: str
    runs: tuple[Run, ...]
    compile_seconds: float

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that failed."""
        return tuple(run for run in self.runs if run.failed)

    @property
    def best(self) -> Run | None:
        """The run with the lowest final training loss, None where all failed."""
        fit = [run for run in self.runs if not run.failed]
        return min(fit, key=lambda run: run.final_train_loss, default=None)

    @property
    def on_edge(self) -> bool:
        """Is the best learning rate the lowest or highest tried?"""
        return self.best is not None and self.best in (self.runs[0], self.runs[-1])

    @property
    def seconds_a_step(self) -> float:
        """The median over the runs."""
        return statistics.median(
            run.seconds[-1] / (len(run.seconds) - 1) for run in self.runs
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        return {
            "name": self.name,
            "best_learning_rate": self.best and self.best.learning_rate,
            "best_on_edge": self.on_edge,
            "seconds_a_step": self.seconds_a_step,
            "compile_seconds": self.compile_seconds,
            "runs": [
                {**dataclasses.asdict(run), "failed": run.failed} for run in self.runs
            ],
        }


@dataclasses.dataclass(frozen=True)
class Race:
    """Entries, and what they had in common.

    Attributes:
        entries: one a contender.
        steps: of each run.
        batch_size: examples a step.
        damping: λ of the curvatures; not tuned.
    """

    entries: tuple[Entry, ...]
    steps: int
    batch_size: int
    damping: float

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        record = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self)
        }
        return {**record, "entries": [entry.to_dict() for entry in self.entries]}

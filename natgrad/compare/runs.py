"""Who races, and the records: runs, each contender's entry, the race, and repetitions.

What is run and what counts as best stands in `natgrad.compare.training`.

Any name of `natgrad.CURVATURES` is a contender: `natural_gradient` with that curvature
and no trust region: −η (A + λI)⁻¹ g with A of the current batch. Beside them stand
optimizers that know no Fisher.
All grids have the same number of rates, half a decade apart (1, 3, 10, 30 …).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import optax

from natgrad.compare.comparison import Verdict
from natgrad.compare.tables import duration, figure
from natgrad.curvature import CURVATURES, choose
from natgrad.model import Model
from natgrad.optimizers import kl_shampoo, natural_gradient, soap

Make = Callable[[Any], optax.GradientTransformationExtraArgs]

DEFAULT = ("dense", "kfac", "diagonal", "sgd", "adam")


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer up to its learning rate."""

    name: str
    make: Make  # learning rate -> transformation; called under jit
    middle: int  # of the grid, in half decades above 1e-3: 0 is 0.001, 1 is 0.003

    def rates(self, count: int) -> tuple[float, ...]:
        """`count` learning rates around the middle."""
        first = self.middle - count // 2
        steps = (divmod(index, 2) for index in range(first, first + count))
        return tuple(float(f"{3 if odd else 1}e{tens - 3}") for tens, odd in steps)


# (optimizer, middle of its grid, where it comes from)
BASELINES: dict[str, tuple[Callable, int, str]] = {
    "sgd": (optax.sgd, 7, "optax"),
    "adam": (optax.adam, 3, "optax"),
    "soap": (soap, 3, "ng"),
    "kl_shampoo": (kl_shampoo, 3, "ng"),
}

# The middle of the grid of every curvature: 0.3. One step of 1 is Newton's.
_CURVATURE_MIDDLE = 5


def contender(name: str, model: Model, damping: float) -> Contender:
    """The contender called `name`.

    Raises:
        ValueError: for an unknown name.
    """
    choose({**CURVATURES, **BASELINES}, name, "optimizer")
    if name in BASELINES:
        optimizer, middle, _ = BASELINES[name]
        with_extra = optax.with_extra_args_support
        return Contender(name, lambda rate: with_extra(optimizer(rate)), middle)
    how = {"curvature": CURVATURES[name], "damping": damping, "trust_region": None}
    make = functools.partial(natural_gradient, model=model, **how)
    return Contender(name, make, _CURVATURE_MIDDLE)


def line(name: str, rate: float, damping: float) -> str:
    """What makes a contender in a program, at rate η and damping λ, to paste."""
    if name in BASELINES:
        return f"{BASELINES[name][2]}.{name}({rate:g})"
    form = CURVATURES[name]
    is_class = isinstance(form, type)
    where = f"curvature.{form.__name__}" if is_class else f'CURVATURES["{name}"]'
    keywords = f"curvature=ng.{where}, damping={damping:g}, trust_region=None"
    return f"ng.natural_gradient({rate:g}, model, {keywords})"


# What is so near the lowest loss, as a part of it, is as good.
_NEAR = 0.1


@dataclasses.dataclass(frozen=True)
class Run:
    """One learning rate's run; each list starts with the initial parameters.

    Attributes:
        learning_rate: η.
        seconds: since the start, compiling and evaluating left out.
        train_loss: over all training data, nats.
        test_loss: nats.
        score: on the test data; see `natgrad.compare.training.Score`.
        final_train_loss: the last of them, and so `final_test_loss`, `final_score`.
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

    final_train_loss = property(lambda run: run.train_loss[-1])
    final_test_loss = property(lambda run: run.test_loss[-1])
    final_score = property(lambda run: run.score[-1])

    def seconds_to(self, loss: float) -> float:
        """Seconds until the training loss is at most `loss`; inf if never."""
        pairs = zip(self.seconds, self.train_loss, strict=True)
        return next((second for second, at in pairs if at <= loss), math.inf)


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

    @property
    def final_train_loss(self) -> float:
        """Of the best run; inf where all failed."""
        return self.best.final_train_loss if self.best else math.inf

    def seconds_to(self, loss: float) -> float:
        """Seconds of compiling and of the best run until its loss is at most that."""
        run = self.best
        return self.compile_seconds + run.seconds_to(loss) if run else math.inf

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        return {
            "name": self.name,
            "best_learning_rate": self.best and self.best.learning_rate,
            "best_on_edge": self.on_edge,
            "seconds_a_step": self.seconds_a_step,
            "compile_seconds": self.compile_seconds,
            "runs": [{**vars(run), "failed": run.failed} for run in self.runs],
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

    @property
    def ranked(self) -> list[Entry]:
        """Who has a run that did not fail, the lowest final training loss first."""
        fit = [entry for entry in self.entries if entry.best]
        return sorted(fit, key=lambda entry: entry.final_train_loss)

    @property
    def mark(self) -> float:
        """The loss at which an optimizer is as good as the best; NaN where all failed.

        10 % above the lowest final training loss, or 10 % of the fall to that above it
        where the fall is smaller, since a loss may have a constant in it.
        """
        lowest = self.ranked[0].best if self.ranked else None
        if lowest is None:
            return math.nan
        end = lowest.final_train_loss
        return end + _NEAR * min(abs(end), lowest.train_loss[0] - end)

    @property
    def recommended(self) -> Entry | None:
        """Who comes to `mark` first, compiling counted; None where all failed."""
        mark = self.mark
        return min(self.ranked, key=lambda entry: entry.seconds_to(mark), default=None)

    def verdict(self) -> Verdict:
        """Which optimizer to use, in plain words, and the line to paste."""
        failed = [
            f"{entry.name} ({len(entry.failed)} of {len(entry.runs)})"
            for entry in self.entries
            if entry.failed
        ]
        points = [f"Learning rates that failed: {', '.join(failed)}."] * bool(failed)
        first = self.recommended
        if first is None or first.best is None:
            headline = "In training every run of every optimizer failed."
            return Verdict(headline, tuple(points))
        lowest, rate = self.ranked[0], first.best.learning_rate
        beside = [e for e in self.ranked if e is lowest or e.name in BASELINES]
        beside = [entry for entry in beside if entry is not first]
        others = [f"{entry.name} {figure(entry.final_train_loss)}" for entry in beside]
        headline = (
            f"To train, use {first.name} at rate {rate:g}: "
            f"{figure(first.final_train_loss)} nats after {self.steps} steps"
            f"{'; ' * bool(others)}{', '.join(others)}."
        )
        why = (
            "It is the first within 10 % of the lowest training loss, at "
            f"{figure(self.mark)} nats, {duration(first.seconds_to(self.mark))} after "
            "the start."
        )
        points = [why, *map(_told, (first, *beside)), *points]
        return Verdict(headline, tuple(points), line(first.name, rate, self.damping))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        return {**vars(self), "entries": [entry.to_dict() for entry in self.entries]}


@dataclasses.dataclass(frozen=True)
class Repeated:
    """One contender's runs at its best learning rate.

    Attributes:
        name: of the contender.
        learning_rate: η.
        runs: one a seed.
    """

    name: str
    learning_rate: float
    runs: tuple[Run, ...]

    def quartiles(self, figure: str) -> np.ndarray:
        """Lower quartile, median and upper quartile at each step, [3, steps + 1].

        Args:
            figure: `train_loss`, `test_loss`, `score` or `seconds`.
        """
        values = np.array([getattr(run, figure) for run in self.runs])
        values = np.where(np.isfinite(values), values, np.inf)
        return np.quantile(values, (0.25, 0.5, 0.75), axis=0, method="nearest")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        return {**vars(self), "runs": [dict(vars(run)) for run in self.runs]}


def _told(entry: Entry) -> str:
    """What an optimizer's best run came to."""
    held_out = figure(entry.best and entry.best.final_test_loss)
    return (
        f"{entry.name}: {held_out} nats on held-out data, "
        f"compiling {duration(entry.compile_seconds)}, a step "
        f"{duration(entry.seconds_a_step)}"
        f"{', best at the edge of the rates tried' * entry.on_edge}."
    )

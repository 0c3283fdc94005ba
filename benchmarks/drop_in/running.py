"""Programs of the card: an optimizer with one setting, compiled for one problem.

The learning rate is an argument of the compiled step, so that one program serves all
rates, all seeds and, under stress, other data of the same shapes.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

import natgrad as ng
from benchmarks.optimizers import OPTIMIZERS, Entry, lbfgs, rates
from benchmarks.racing import Local
from benchmarks.training import Problem

TUNED_RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)  # of those that are tuned
# Each with its rate; L-BFGS tries steps up to so many times a hundred.
TUNED: dict[str, Entry] = {
    name: OPTIMIZERS[name]._replace(grid=rates(*TUNED_RATES))
    for name in ("adam", "muon", "sophia", "schedule_free", "soap", "kl_shampoo")
} | {"lbfgs": Entry(rates(*TUNED_RATES), lambda model, rate: lbfgs(model, 100 * rate))}
# Beside every other optimizer; other tuned ones only where they are named.
ALWAYS = ("adam", "muon")
NATURAL: dict[str, Callable] = {
    "natural_gradient": ng.natural_gradient,
    "gram": ng.gram,
    "gram_blocks": ng.gram_blocks,
    "spring": ng.spring,
    "matrix_free": ng.matrix_free,
    "kfac": ng.kfac,
    "ekfac": ng.ekfac,
    "diagonal_fisher": ng.diagonal_fisher,
    "empirical_fisher": ng.empirical_fisher,
    "kfac_adaptive": ng.kfac_adaptive,
}
OWN_MOMENTUM = ("spring",)  # `momentum=` is part of the method: always as it comes
# The whole card, of every problem and optimizer.
MATRIX = {
    "rates": [0.03, 0.1, 0.3, 1.0],
    "batches": [32, 128],
    "momentum": [0.0, 0.9],
}
EVERY = 20  # steps between two looks at the loss

Rate = float | str | None  # a number, "default", or None where there is none to give


class Cell(NamedTuple):
    """What was found.

    Attributes:
        optimizer, batch, momentum, rate, seed: which cell of its problem.
        loss: of all data, before the first step, after every `EVERY` steps and the
            last, as far as the cell came.
        steps: that were taken.
        step_seconds: CPU seconds of a step, of all threads, in the mean.
        first: seconds and CPU seconds of state, trace, compilation and first step.
        note: why it was not finished: "too slow", "too large" or an error; else "".
    """

    optimizer: str
    batch: int
    momentum: float
    rate: Rate
    seed: int
    loss: list[float]
    steps: int
    step_seconds: float | None
    first: tuple[float, float] | None
    note: str = ""

    @property
    def key(self) -> tuple:
        """Which cell: a later measurement of it replaces an earlier one."""
        return tuple(self[:5])


class Limits(NamedTuple):
    """Of a cell: steps to take, CPU seconds for them, bytes of temporary memory."""

    steps: int = 200
    seconds: float = 60.0
    memory: int = 2**31


def parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments that an optimizer of this library has."""
    return dict(inspect.signature(NATURAL[name]).parameters)


def default_rate(name: str) -> Rate:
    """The learning rate of an optimizer as it comes; None where it has none."""
    known = parameters(name).get("learning_rate")
    return known.default if known else None


def extra_arguments(name: str, momentum: float) -> dict[str, float] | None:
    """What a momentum is to an optimizer; {} as it comes, None where it has none."""
    if momentum == 0:
        return {}
    known = name in NATURAL and "momentum" in parameters(name)
    return {"momentum": momentum} if known and name not in OWN_MOMENTUM else None


def settings(name: str, rates: list[float | str]) -> list[tuple[Rate, tuple]]:
    """[(rate as asked for, arguments of the program)]."""
    if name in TUNED:
        return [(setting[0], setting) for setting in TUNED[name].grid]
    if "learning_rate" not in parameters(name):
        return [(None, ())]
    default = default_rate(name)
    values = {rate: default if rate == "default" else rate for rate in rates}
    return [(k, (v,)) for k, v in values.items() if isinstance(v, (int, float))]


def entry(name: str, extra: dict[str, float]) -> Entry:
    """The optimizer with its rate as an argument."""
    if name in TUNED:
        return TUNED[name]
    make = NATURAL[name]
    if "learning_rate" not in parameters(name):
        return Entry(((),), lambda model: make(model=model, **extra))
    return Entry(
        ((0.01,),), lambda model, rate: make(learning_rate=rate, model=model, **extra)
    )


class Program:
    """A compiled step of one optimizer on one problem, with its batch size.

    Attributes:
        problem: whose data it trains on; another of the same shapes may be set.
        first: seconds and CPU seconds to the end of a first step.
    """

    def __init__(self, name: str, problem: Problem, extra: dict[str, float]):
        jax.clear_caches()  # nothing is left of the optimizers before
        self.problem = problem
        self.measured = jax.jit(problem.loss)
        self.runner = Local(problem, entry(name, extra), self.loss_of)
        self.first = self.runner.compile_wall, self.runner.compile_cpu
        self.stepped = False

    def loss_of(self, params) -> float:
        """Of all data."""
        return float(self.measured(params, self.problem.x, self.problem.y))

    def train(self, setting: tuple, seed: int, limits: Limits) -> dict:
        """Fields of a cell: losses, steps, seconds a step, note."""
        if self.runner.temporary > limits.memory:
            note = f"too large: {self.runner.temporary / 2**30:.1f} GiB"
            return {"loss": [], "steps": 0, "step_seconds": None, "note": note}
        self.runner.problem, self.runner.setting = self.problem, setting
        losses, done, spent, note = [self.runner.start(seed)], 0, 0.0, ""
        picks = self.problem.picks(seed)
        while done < limits.steps and not note and np.isfinite(losses[-1]):
            # The first step is alone, so that a very slow one is noticed.
            count = min(EVERY - done % EVERY, limits.steps - done) if done else 1
            wall, cpu, loss = self.runner.turn([next(picks) for _ in range(count)])
            if not self.stepped:
                self.first = self.first[0] + wall, self.first[1] + cpu
                self.stepped = True
            if done:
                losses.append(loss)
            done, spent = done + count, spent + cpu
            allowed = limits.seconds * (3 if done == 1 else 1)
            if spent / done * limits.steps > allowed:
                note = "too slow"
        return {
            "loss": losses,
            "steps": done,
            "step_seconds": spent / max(done, 1),
            "note": note,
        }


def cells(
    name: str,
    problem: Problem,
    momentum: float,
    rates: list[float | str],
    seeds: int,
    limits: Limits,
    given: dict[str, float] | None = None,
) -> Iterator[Cell]:
    """A cell for each rate and seed; one that is too slow stands for those after it.

    `given` are arguments of a natural optimizer that are to be other than they come.
    """
    extra = extra_arguments(name, momentum)
    if extra is None:
        return
    extra |= (given or {}) if name in NATURAL else {}
    empty = {"loss": [], "steps": 0, "step_seconds": None}
    program, note = None, ""
    for rate, setting in settings(name, rates):
        for seed in range(1, seeds + 1):
            found = empty | {"note": note}
            try:
                if not note:
                    program = program or Program(name, problem, extra)
                    found = program.train(setting, seed, limits)
            except Exception as error:  # the card says so, and goes on
                found = empty | {"note": f"{type(error).__name__}: {error}"[:200]}
            note = found["note"]
            first = program and program.first
            where = (name, problem.batch, momentum, rate, seed)
            yield Cell(*where, **found, first=first)

"""The problems of a race, a fifth of whose examples is held out.

Nine are those of `benchmarks.training`, two those of `benchmarks.large_problems`,
fifteen the small ones of `benchmarks.drop_in.problems` in batches of 128; where a name
is in both, the small one is called small_NAME.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax

from benchmarks import large_problems, training
from benchmarks.drop_in import problems as small
from benchmarks.held_out import at_other_points, divided
from benchmarks.training import LAYERED, Problem

BATCH = 128
# The exact natural gradient, beside K-FAC: one output for each example.
EXACT = ("diabetes", "logistic", "poisson", "heteroscedastic", "imbalanced", "pinn")
# Dense networks with tanh units, and the layer without them beside the last: those that
# `benchmarks.peer_worker` can build.
LINEAR_LAYERS = {
    "digits_mlp": -1,
    "small_autoencoder": -1,
    "small_logistic": -1,
    "imbalanced": -1,
    "classifier": -1,
    "curves": 5,
    "autoencoder": 3,
}
# Where a loss of 1,024 examples would take longer than the steps.
EVALUATED = {"transformer": 128, "autoencoder": 256, "curves": 256}
EVALUATED |= {"resnet20": 256, "decoder": 32}
TEXTS = ("transformer", "decoder")


class Raced(NamedTuple):
    """A problem of the race.

    Attributes:
        make: path of a file of images, or None -> the problem.
        steps: as many as every optimizer takes.
        evaluated: of how many examples, at most, a loss is taken.
        limit: CPU seconds of a run, at most.
    """

    make: Callable[[Path | None], Problem]
    steps: int
    evaluated: int = 1024
    limit: float = 40.0


def split(name: str, problem: Problem) -> Problem:
    """With held-out data: other points of an equation, no other spins there are."""
    if name == "vmc":
        return problem
    if name == "pinn":
        with jax.enable_x64(problem.x64):
            return at_other_points(problem)
    with jax.enable_x64(problem.x64):
        return divided(problem, in_order=name in TEXTS)


def of_training(name: str, steps: int) -> Raced:
    make = training.PROBLEMS[name]

    def whole(path):
        return make(path) if path and name in training.OF_IMAGES else make()

    count = EVALUATED.get(name, 1024)
    return Raced(lambda path: split(name, whole(path)), steps, count)


def of_large(name: str, steps: int) -> Raced:
    make = large_problems.PROBLEMS[name]
    return Raced(lambda _: split(name, make()), steps, EVALUATED[name], limit=600.0)


def of_card(name: str, steps: int = 200) -> Raced:
    def make(_):
        exact = ("natural_gradient",) if name in EXACT else ()
        problem = small.PROBLEMS[name]().problem
        problem = problem._replace(batch=BATCH, optimizers=(*LAYERED, *exact))
        return split(name, problem)

    return Raced(make, steps, 128 if name == "transformer" else 1024)


LARGE = {"resnet20": 100, "decoder": 60}
STEPS = {
    "linear": 200,
    "logistic": 200,
    "pinn": 300,
    "vmc": 300,
    "classifier": 100,
    "cnn": 200,
    "transformer": 100,
    "curves": 100,
    "autoencoder": 100,
}
RACES = {
    (f"small_{name}" if name in training.PROBLEMS else name): of_card(name)
    for name in small.PROBLEMS
} | {name: of_training(name, steps) for name, steps in STEPS.items()}
RACES |= {name: of_large(name, steps) for name, steps in LARGE.items()}

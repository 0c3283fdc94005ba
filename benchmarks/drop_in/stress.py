"""Trials that must not make an optimizer diverge, each with the optimizer as it comes.

    batch of 8           gradients and curvatures of few examples
    inputs × 100         all that is not whole numbers, such as characters
    bfloat16             parameters in half precision
    half of the labels   those of another example
    rate of 10           a learning rate far too large

Diverged is a cell whose last loss of all data is not finite, or exceeds the floor by
more than twice what it did before the first step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.drop_in.problems import Small
from benchmarks.drop_in.running import Limits, Program, parameters
from benchmarks.training import Problem

BATCH, SMALL_BATCH, RATE, LARGE_RATE = 32, 8, 0.3, 10.0


def plain(problem: Problem) -> Problem:
    return problem._replace(batch=BATCH)


def in_small_batches(problem: Problem) -> Problem:
    return problem._replace(batch=SMALL_BATCH)


def scaled(problem: Problem) -> Problem:
    floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    larger = lambda leaf: 100 * leaf if floats(leaf) else leaf
    return plain(problem)._replace(x=jax.tree.map(larger, problem.x))


def halved(problem: Problem) -> Problem:
    """Parameters in bfloat16."""
    half = lambda seed: jax.tree.map(
        lambda leaf: leaf.astype(jnp.bfloat16), problem.initial(seed)
    )
    return plain(problem)._replace(initial=half)


def mislabelled(problem: Problem) -> Problem:
    draw, count = np.random.default_rng(0), len(problem.y)
    wrong = draw.permutation(count)[: count // 2]
    labels = np.asarray(problem.y).copy()
    labels[wrong] = labels[draw.permutation(wrong)]
    return plain(problem)._replace(y=jnp.asarray(labels))


# What is done; trials of one group share a program.
TRIALS: dict[str, tuple[str, Callable[[Problem], Problem], float]] = {
    "inputs × 100": ("plain", scaled, RATE),
    "half of the labels": ("plain", mislabelled, RATE),
    "rate of 10": ("plain", plain, LARGE_RATE),
    "batch of 8": ("batch", in_small_batches, RATE),
    "bfloat16": ("bfloat16", halved, RATE),
}


def diverged(start: float, loss: float, floor: float) -> bool:
    """Is the loss not finite, or its excess more than twice that of the start?"""
    return not math.isfinite(loss) or loss - floor > 2 * (start - floor)


def trials(name: str, found: Small, limits: Limits) -> Iterator[dict[str, Any]]:
    """A record of every trial of an optimizer on a problem."""
    programs: dict[str, Program] = {}
    has_rate = "learning_rate" in parameters(name)
    for trial, (group, changed, rate) in TRIALS.items():
        if rate == LARGE_RATE and not has_rate:
            continue
        problem = changed(found.problem)
        if group not in programs:
            programs[group] = Program(name, problem, {})
        program = programs[group]
        program.problem = problem
        result = program.train((rate,) if has_rate else (), 1, limits)
        start, last = (
            (result["loss"] or [math.nan])[0],
            (result["loss"] or [math.nan])[-1],
        )
        yield {
            "optimizer": name,
            "trial": trial,
            "start": start,
            "loss": last,
            "steps": result["steps"],
            "note": result["note"],
            "diverged": bool(result["loss"]) and diverged(start, last, found.floor),
        }

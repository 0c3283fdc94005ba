"""What a step does to its state before it solves: inverses first, then statistics.

Inverses are made of the statistics of the steps before, so they are renewed before this
step's statistics enter the average. Only the first step has none: its turn comes twice,
the first for the average alone and the second for the inverses of that.

Estimates, averages and inverses are work, and memory to read and write, only in the
steps in which they are due: see `natgrad.inplace`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from natgrad import tree
from natgrad.control_flow import cond_in_place, repeat_in_place
from natgrad.curvature.base import Curvature
from natgrad.metrics.base import Metric
from natgrad.solvers.base import Solver, stagger
from natgrad.transforms.inverse_cache import InverseCache, Refresh
from natgrad.transforms.state import ScaleByCurvatureState, average
from natgrad.typing import Array, Statistics


class Averaged(NamedTuple):
    """The average of statistics, and whether the step can be taken.

    Attributes:
        statistics: the average.
        estimates: how many are in it.
        usable: are gradient, damping and, where they are new, statistics finite?
    """

    statistics: Statistics
    estimates: Array
    usable: Array


def update_statistics_and_inverse(
    refresh: Refresh,
    solver: Solver | None,
    curvature: Curvature,
    state: ScaleByCurvatureState,
    estimate: Callable[[Curvature], Statistics] | None,
    metric: Callable[[Statistics], Metric],
    damping: Array,
    usable: Array,
) -> tuple[ScaleByCurvatureState, Array]:
    """(state, usable): statistics and kept inverse renewed, where due and usable.

    Args:
        refresh: how often.
        solver: of the transformation.
        curvature: of the transformation.
        state: as the step found it.
        estimate: statistics of the batch by the curvature that follows the average;
            None where there is no batch.
        metric: of statistics.
        damping: λ, where usable.
        usable: are gradient and damping finite?
    """
    due = (state.count % refresh.statistics == 0) | (state.estimates == 0)
    due = due | (state.count < refresh.warm_up)
    now = Averaged(state.statistics, state.estimates, usable)
    if estimate is None:
        now, averaged = now._replace(usable=usable & (state.estimates > 0)), None
        due = jnp.zeros_like(due)
    elif refresh.statistics == 1:  # beside the gradient, whose forward pass is shared
        found = estimate(curvature.with_previous(state.statistics))
        now = now._replace(usable=usable & tree.all_finite(found))
        averaged = lambda now, mine: _average(curvature, state, now, found, mine)
    else:
        averaged = lambda now, mine: cond_in_place(
            due & mine,
            lambda now: _estimated(curvature, state, now, estimate, mine),
            now,
        )
    if not isinstance(state.inverse, InverseCache):
        now = now if averaged is None else averaged(now, jnp.array(True))
        return _with_average(state, now), now.usable
    return _with_inverse(refresh, solver, state, now, averaged, due, metric, damping)


def _with_inverse(
    refresh: Refresh,
    solver: Solver,
    state: ScaleByCurvatureState,
    now: Averaged,
    averaged: Callable[[Averaged, Array], Averaged] | None,
    due: Array,
    metric: Callable[[Statistics], Metric],
    damping: Array,
) -> tuple[ScaleByCurvatureState, Array]:
    """The same where an inverse is kept."""
    inverse = state.inverse
    groups = _groups(refresh, inverse)
    due = functools.reduce(operator.or_, (turn for turn, _ in groups), due)
    opening = (inverse.age < 0) & (averaged is not None)
    left = opening.astype(jnp.int32) + 1

    def work(carried):
        left, now, pieces = carried
        ripe = now.usable & (left == 1)
        for turn, group in groups:
            prepare = lambda group=group: solver.factorize(
                metric(now.statistics), damping, group
            )
            pieces = _replaced(pieces, prepare, group, ripe & turn, inverse.age < 0)
        if averaged is not None:
            now = averaged(now, left == jnp.where(opening, 2, 1))
        return left - 1, now, pieces

    _, now, pieces = repeat_in_place([due, opening], work, (left, now, inverse.pieces))
    state = _with_average(state, now)
    return state._replace(inverse=inverse._replace(pieces=pieces)), now.usable


def _estimated(
    curvature: Curvature,
    state: ScaleByCurvatureState,
    now: Averaged,
    estimate: Callable[[Curvature], Statistics],
    mine: Array,
) -> Averaged:
    """A new estimate in the average, if it is finite and the turn is mine."""
    found = estimate(curvature.with_previous(now.statistics))
    now = now._replace(usable=now.usable & (tree.all_finite(found) | ~mine))
    return _average(curvature, state, now, found, mine)


def _average(
    curvature: Curvature,
    state: ScaleByCurvatureState,
    now: Averaged,
    found: Statistics,
    mine: Array,
) -> Averaged:
    """One more estimate in the average, if usable and the turn is mine."""
    new = average(curvature, _with_average(state, now), found, now.usable & mine)
    return now._replace(statistics=new.statistics, estimates=new.estimates)


def _with_average(state: ScaleByCurvatureState, now: Averaged) -> ScaleByCurvatureState:
    return state._replace(statistics=now.statistics, estimates=now.estimates)


def _groups(
    refresh: Refresh, inverse: InverseCache
) -> list[tuple[Array, Sequence[int]]]:
    """(is it due?, the pieces) of the pieces of the inverse that are renewed together.

    At the start all are due.
    """
    period, age = refresh.inverses, inverse.age
    warming = refresh.warming(tree.increment(age))  # age is −1 before the first step
    return [
        (warming | ((age > 0) & (age % period == turn)), group)
        for turn, group in stagger(len(inverse.pieces), period, refresh.staggered)
    ]


def _replaced(
    pieces: tuple[Any, ...],
    prepare: Callable[[], Sequence[Any]],
    group: Sequence[int],
    due: Array,
    first: Array,
) -> tuple[Any, ...]:
    """The pieces, a group of them renewed if due and, but for the first, finite."""

    def renew(old):
        new = tuple(prepare())
        return tree.where(first | tree.all_finite(new), new, old)

    new = iter(cond_in_place(due, renew, tuple(pieces[i] for i in group)))
    return tuple(next(new) if i in group else p for i, p in enumerate(pieces))

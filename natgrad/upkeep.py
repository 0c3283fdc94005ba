"""What a step does to its state before it solves: statistics first, then inverses.

Estimates, averages and inverses are work, and memory to read and write, only in the
steps in which they are due: see `natgrad.inplace`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.inplace import renewed
from natgrad.metric import Metric
from natgrad.refresh import Kept, Refresh
from natgrad.solvers import Solver, turns
from natgrad.state import ScaleByCurvatureState, average
from natgrad.typing import Array, Statistics


class Upkept(NamedTuple):
    """What upkeep changes.

    Attributes:
        statistics: the average.
        estimates: how many are in it.
        inverse: what is kept between refreshes.
        usable: are gradient, damping and, where they are new, statistics finite?
    """

    statistics: Statistics
    estimates: Array
    inverse: Any
    usable: Array


def kept_up(
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
    every = estimate is None or refresh.statistics == 1
    due = (state.count % refresh.statistics == 0) | (state.estimates == 0)
    due = due | (state.count < refresh.warm_up)
    groups = _groups(refresh, state.inverse)

    def averaged(now: Upkept) -> Upkept:
        found = estimate(curvature.following(now.statistics))
        fine = now.usable & tree.all_finite(found)
        old = state._replace(statistics=now.statistics, estimates=now.estimates)
        new = average(curvature, old, found, fine)
        return Upkept(new.statistics, new.estimates, now.inverse, fine)

    def work(now: Upkept) -> Upkept:
        if estimate is None:
            new = now._replace(usable=now.usable & (now.estimates > 0))
        else:
            new = averaged(now) if every else renewed(due, averaged, now)
        inverse = new.inverse
        for turn, group in groups:

            def made(group=group, ours=new.statistics):
                found = tree.where(now.inverse.age < 0, ours, now.statistics)
                return solver.prepare(metric(found), damping, group)

            inverse = _with(inverse, made, group, new.usable & turn)
        return new._replace(inverse=inverse)

    now = Upkept(state.statistics, state.estimates, state.inverse, usable)
    if every:
        now = work(now)
    else:
        anything = functools.reduce(operator.or_, (turn for turn, _ in groups), due)
        now = renewed(anything, work, now)
    statistics, estimates, inverse, usable = now
    return (
        state._replace(statistics=statistics, estimates=estimates, inverse=inverse),
        usable,
    )


def _groups(refresh: Refresh, inverse: Any) -> list[tuple[Array, Sequence[int]]]:
    """(is it due?, the pieces) of the pieces of the inverse that are renewed together.

    At the start all are due.
    """
    if not isinstance(inverse, Kept):
        return []
    period, age = refresh.inverses, inverse.age
    warming = refresh.warming(age + 1)  # age is −1 before the first step
    return [
        (warming | ((age > 0) & (age % period == turn)), group)
        for turn, group in turns(len(inverse.pieces), period, refresh.staggered)
    ]


def _with(inverse: Kept, make: Callable, group: Sequence[int], due: Array) -> Kept:
    """The inverse, a group of pieces renewed if due and, but for the first, finite."""

    def renew(old):
        new = tuple(make())
        return tree.where((inverse.age < 0) | tree.all_finite(new), new, old)

    new = iter(renewed(due, renew, tuple(inverse.pieces[i] for i in group)))
    pieces = enumerate(inverse.pieces)
    return inverse._replace(
        pieces=tuple(next(new) if i in group else piece for i, piece in pieces)
    )

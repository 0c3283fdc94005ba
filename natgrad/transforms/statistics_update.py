"""What a step does to its state before it solves: inverses first, then statistics.

Inverses are computed from the statistics of earlier steps; then this batch is averaged
in. On the first step the loop body runs twice: average, then invert.

Estimates, averages and inverses are work, and memory to read and write, only in the
steps in which they are due: see `natgrad.control_flow`.
"""

from __future__ import annotations

import functools
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.control_flow import cond_in_place, twice_in_place
from natgrad.curvature.base import Curvature
from natgrad.solvers.base import CachedSolver, Solver
from natgrad.transforms.inverse_cache import InverseCache, Refresh
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import Step
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


class Estimate(NamedTuple):
    """This step's estimate of the statistics, made or still to be made.

    Attributes:
        step: the arguments of the update.
        due: shall this step have one? Shape ().
        statistics: the estimate, where every step has one; else None.
    """

    step: Step
    due: Array
    statistics: Statistics | None


def update_statistics_and_inverse(
    refresh: Refresh, solver: Solver | None, step: Step, state: ScaleByCurvatureState
) -> tuple[ScaleByCurvatureState, Array]:
    """The state with this step's statistics and inverses, where they are due.

    Args:
        refresh: how often.
        solver: of the transformation.
        step: the arguments of the update.
        state: as the step found it.

    Returns:
        The state, and whether gradient, damping and statistics are usable, shape ().

    Raises:
        ValueError: the state keeps inverses that the solver has no use for.
    """
    average = Averaged(state.statistics, state.estimates, step.usable)
    estimate = _estimate(refresh, step, state)
    if estimate is None:
        average = average._replace(usable=step.usable & (state.estimates > 0))
    elif estimate.statistics is not None:
        finite = tree.all_finite(estimate.statistics)
        average = average._replace(usable=step.usable & finite)
    if isinstance(state.inverse, InverseCache):
        if not isinstance(solver, CachedSolver):
            raise ValueError(
                "The state keeps inverses between refreshes and this transformation's "
                f"solver keeps none, got solver={solver!r}: make the state by init of "
                "the transformation that updates it."
            )
        return _with_inverse(refresh, solver, step, state, average, estimate)
    average = _accumulated(state, average, estimate, jnp.array(True))
    return _with_average(state, average), average.usable


def _estimate(
    refresh: Refresh, step: Step, state: ScaleByCurvatureState
) -> Estimate | None:
    """This step's estimate; None where there is neither a batch nor statistics."""
    always = jnp.array(True)
    if step.statistics is not None:
        return Estimate(step, always, step.statistics)
    if not step.has_batch:
        return None
    if refresh.statistics == 1:  # beside the gradient, whose forward pass is shared
        return Estimate(step, always, _estimated(step, state.statistics))
    due = (state.count % refresh.statistics == 0) | (state.estimates == 0)
    return Estimate(step, due | (state.count < refresh.warm_up), None)


def _with_inverse(
    refresh: Refresh,
    solver: CachedSolver,
    step: Step,
    state: ScaleByCurvatureState,
    average: Averaged,
    estimate: Estimate | None,
) -> tuple[ScaleByCurvatureState, Array]:
    """The same where an inverse is kept."""
    cache, policy = state.inverse, refresh.renewal
    # At the start all are due; `age` is −1 before the first step.
    warming = refresh.warming(tree.increment(cache.age))
    turns = policy.due(cache.age, len(cache.pieces), cache.renewal)
    own = {id(turn): warming | turn for turn in turns}
    due = jnp.array(False) if estimate is None else estimate.due
    due = functools.reduce(operator.or_, own.values(), due)
    opening = (cache.age < 0) & (estimate is not None)

    def one_turn(last, carried):
        average, pieces, renewal = carried
        damping = step.safe_damping
        metric = step.curvature.metric(average.statistics, *step.batch[:3])
        ripe = {name: average.usable & last & turn for name, turn in own.items()}
        now = [ripe[id(turn)] for turn in turns]
        pieces, renewals = solver.renew(metric, damping, now, pieces, cache.age < 0)
        renewal = policy.renewed(renewal, cache.age, now)
        # Always so; but XLA has to know that statistics are read before they change,
        # or it copies all of them first.
        own_turn = (opening ^ last) & (renewals >= 0)
        average = _accumulated(state, average, estimate, own_turn)

        def measured(renewal):
            metric = step.curvature.metric(average.statistics, *step.batch[:3])
            return policy.measured(renewal, solver, metric, pieces, damping)

        if jax.tree.leaves(renewal) and estimate is not None:
            changed = estimate.due & own_turn & ~opening
            renewal = cond_in_place(changed, measured, renewal)
        return average, pieces, renewal

    start = (average, cache.pieces, cache.renewal)
    average, pieces, renewal = twice_in_place(due, opening, one_turn, start)
    state = _with_average(state, average)
    cache = cache._replace(pieces=pieces, renewal=renewal)
    return state._replace(inverse=cache), average.usable


def _estimated(step: Step, statistics: Statistics) -> Statistics:
    """Statistics of the batch, by the curvature that continues from the average."""
    return step.curvature.with_previous(statistics).estimate(*step.batch)


def _accumulated(
    state: ScaleByCurvatureState,
    average: Averaged,
    estimate: Estimate | None,
    own_turn: Array,
) -> Averaged:
    """The average with this step's estimate in it, in its turn and where it is due."""
    if estimate is None:
        return average
    curvature = estimate.step.curvature

    def accumulate(average, statistics):
        usable = average.usable & own_turn
        new = add_to_average(
            curvature, _with_average(state, average), statistics, usable
        )
        return average._replace(statistics=new.statistics, estimates=new.estimates)

    def estimate_and_accumulate(average):
        statistics = _estimated(estimate.step, average.statistics)
        finite = tree.all_finite(statistics) | ~own_turn
        average = average._replace(usable=average.usable & finite)
        return accumulate(average, statistics)

    if estimate.statistics is not None:
        return accumulate(average, estimate.statistics)
    return cond_in_place(estimate.due & own_turn, estimate_and_accumulate, average)


def add_to_average(
    curvature: Curvature,
    state: ScaleByCurvatureState,
    estimate: Statistics,
    usable: Array,
) -> ScaleByCurvatureState:
    """The state with one more estimate in its moving average, if it is usable.

    Args:
        curvature: whose `accumulate` averages.
        state: with the average so far.
        estimate: of one batch, like the statistics of the state.
        usable: shape ().

    Raises:
        ValueError: the estimate has other shapes than the statistics.
    """
    tree.check_kept(state.statistics, estimate)
    estimates = tree.increment(state.estimates)
    total = 1 - state.decay ** estimates.astype(state.decay.dtype)
    weight = (1 - state.decay) / total
    averaged = curvature.accumulate(state.statistics, estimate, weight)
    return state._replace(
        statistics=tree.where(usable, averaged, state.statistics),
        estimates=jnp.where(usable, estimates, state.estimates),
    )


def _with_average(
    state: ScaleByCurvatureState, average: Averaged
) -> ScaleByCurvatureState:
    """The state with another average."""
    return state._replace(statistics=average.statistics, estimates=average.estimates)

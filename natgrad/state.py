"""The state of `scale_by_curvature`: a moving average of statistics, and its health.

    m_k = β m_{k−1} + (1 − β) F_k,    m_0 = 0,       F̄_k = m_k / (1 − βᵏ)

F stands for whatever statistics the curvature keeps. Those of a
skipped step do not enter the average.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.metric import Metric
from natgrad.solvers import Solution
from natgrad.typing import Array, Params, Statistics


class Health(NamedTuple):
    """How the last step went; all scalars.

    Attributes:
        damping: λ.
        fallback: did the solver's first choice of algorithm fail?
        residual: |(F + λI) d − g| / |g|.
        predicted_decrease: ⟨g, d⟩ − ½⟨d, F d⟩, by which the loss falls for the whole
            step −d if F is its curvature, in nats.
        skipped: was the step skipped?
        skips: how many steps were skipped so far.
    """

    damping: Array
    fallback: Array
    residual: Array
    predicted_decrease: Array
    skipped: Array
    skips: Array


class ScaleByCurvatureState(NamedTuple):
    """State of `scale_by_curvature`.

    Attributes:
        count: steps taken or skipped, which a damping schedule sees.
        key: the raw random key that sampled labels are drawn with.
        decay: β.
        estimates: how many statistics went into the average.
        statistics: the average, not yet corrected for its start at 0.
        health: how the last step went.
    """

    count: Array
    key: Array
    decay: Array
    estimates: Array
    statistics: Statistics
    health: Health


def average(
    state: ScaleByCurvatureState, statistics: Statistics, usable: Array
) -> ScaleByCurvatureState:
    """The state with one more estimate in its moving average, if it is usable."""
    decay = state.decay

    def mix(old, new):
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return jnp.where(usable, new, old)
        mixed = decay.astype(old.dtype) * old + (1 - decay).astype(old.dtype) * new
        return jnp.where(usable, mixed, old)

    return state._replace(
        statistics=jax.tree.map(mix, state.statistics, statistics),
        estimates=state.estimates + usable.astype(state.estimates.dtype),
    )


def corrected(state: ScaleByCurvatureState) -> Statistics:
    """The moving average divided by the sum of its weights, 1 − βᵏ."""
    exponent = jnp.maximum(state.estimates, 1).astype(state.decay.dtype)
    weight = 1 - state.decay**exponent

    def divide(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf / weight.astype(leaf.dtype)

    return jax.tree.map(divide, state.statistics)


def unknown_health(dtype: jnp.dtype) -> Health:
    """The health before the first step."""
    zero = lambda dtype: jnp.zeros((), dtype)  # a buffer each, so they can be donated
    return Health(
        damping=zero(dtype),
        fallback=zero(bool),
        residual=zero(dtype),
        predicted_decrease=zero(dtype),
        skipped=zero(bool),
        skips=zero(jnp.int32),
    )


def health_of(
    metric: Metric,
    gradient: Params,
    solution: Solution,
    strength: Array,
    usable: Array,
    skips: Array,
) -> Health:
    """The health of a step along `solution`, which is 0 where it is not usable."""
    direction, fallback = solution
    product = metric.mv(direction)
    rest = jax.tree.map(
        lambda f, d, g: f.astype(strength.dtype) + strength * d - g,
        product,
        direction,
        gradient,
    )
    scale = tree.inner(gradient, gradient)
    safe = jnp.where(scale == 0, 1, scale)
    residual = jnp.where(usable, tree.inner(rest, rest) / safe, 0)
    decrease = tree.inner(gradient, direction) - tree.inner(direction, product) / 2
    return Health(
        damping=strength,
        fallback=fallback & usable,
        residual=jnp.sqrt(jnp.where(residual == 0, 1, residual)) * (residual != 0),
        predicted_decrease=decrease,
        skipped=~usable,
        skips=skips + (~usable).astype(skips.dtype),
    )

"""The state of `scale_by_curvature`: a moving average of statistics, and its health.

    F̄_k = (1 − w_k) F̄_{k−1} + w_k F_k,      w_k = (1 − β) / (1 − βᵏ)

which is Σ_j β^{k−j} F_j over Σ_j β^{k−j}: the exponential average, corrected for its
start. F stands for whatever statistics the curvature keeps, and `accumulate` of the
curvature is what averages them. Those of a skipped step do not enter the average.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.curvature.base import Curvature
from natgrad.metrics.base import Metric
from natgrad.transforms.damping import TrustRegion
from natgrad.transforms.inverse_cache import InverseCache, Solved
from natgrad.typing import Array, ArrayLike, Params, Statistics


class Health(NamedTuple):
    """How the last step went; all scalars.

    Attributes:
        damping: λ.
        fallback: did the solver's first choice of algorithm fail? False for conjugate
            gradients, and where `solver` is called and keeps nothing: it cannot tell.
        iterations: of an iterative solver; 0 for a direct one.
        residual: |(F + λI) d − g| / |g|; with inverses kept over several steps, this
            and the next are those of the last measured step.
        ratio: ⟨d, F d⟩ / ⟨g, d⟩, below 1 for d = (F + λI)⁻¹ g.
        predicted_decrease: ⟨g, d⟩ − ½⟨d, F d⟩, by which the loss falls for the whole
            step −d if F is its curvature, in nats.
        skipped: was the step skipped?
        skips: how many steps were skipped so far.
        reason: why the last step was skipped, a number of `natgrad.health.REASONS`;
            `natgrad.check_health(state)` raises with the reason in words.
    """

    damping: Array
    fallback: Array
    iterations: Array
    residual: Array
    ratio: Array
    predicted_decrease: Array
    skipped: Array
    skips: Array
    reason: Array


class ScaleByCurvatureState(NamedTuple):
    """State of `scale_by_curvature`.

    Attributes:
        count: steps taken or skipped, which a damping schedule sees.
        key: the raw random key that labels, and whatever else is drawn, come from.
        decay: β.
        estimates: how many statistics went into the average.
        statistics: the average F̄_k.
        inverse: what is kept between refreshes; empty where nothing is.
        health: how the last step went.
        owner: whose state it is, see `natgrad.observation`.
    """

    count: Array
    key: Array
    decay: Array
    estimates: Array
    statistics: Statistics
    inverse: Any
    health: Health
    owner: dict[str, tuple]


def average(
    curvature: Curvature,
    state: ScaleByCurvatureState,
    estimate: Statistics,
    usable: Array,
) -> ScaleByCurvatureState:
    """The state with one more estimate in its moving average, if it is usable."""
    tree.check_kept(state.statistics, estimate)
    estimates = tree.increment(state.estimates)
    whole = 1 - state.decay ** estimates.astype(state.decay.dtype)
    weight = (1 - state.decay) / whole
    averaged = curvature.accumulate(state.statistics, estimate, weight)
    return state._replace(
        statistics=tree.where(usable, averaged, state.statistics),
        estimates=jnp.where(usable, estimates, state.estimates),
    )


def state_of_nothing(seed: ArrayLike, decay: ArrayLike) -> ScaleByCurvatureState:
    """The state for parameters without a leaf.

    `optax.tree.map_params` asks for it too: there each leaf stands for whatever lies in
    its place in the state of real parameters.
    """
    zero = lambda: jnp.zeros((), jnp.int32)
    return ScaleByCurvatureState(
        count=zero(),
        key=jax.random.PRNGKey(seed),
        decay=jnp.asarray(decay, jnp.float32),
        estimates=zero(),
        statistics=zero(),
        inverse=zero(),
        health=unknown_health(jnp.float32),
        owner=zero(),
    )


def unknown_health(dtype: jnp.dtype) -> Health:
    """The health before the first step."""
    zero = lambda dtype: jnp.zeros((), dtype)  # a buffer each, so they can be donated
    return Health(
        damping=zero(dtype),
        fallback=zero(bool),
        iterations=zero(jnp.int32),
        residual=zero(dtype),
        ratio=zero(dtype),
        predicted_decrease=zero(dtype),
        skipped=zero(bool),
        skips=zero(jnp.int32),
        reason=zero(jnp.int32),
    )


def examined(
    metric: Metric,
    gradient: Params,
    solved: Solved,
    strength: Array,
    state: ScaleByCurvatureState,
    trust_region: TrustRegion | None,
    divergence: Callable[[Params], Array] | None,
    reason: Array,
) -> tuple[Health, Params]:
    """The health of a step along what was solved for, and the step.

    With inverses kept over several steps, the product F d that residual and ratio need
    is formed once a period, when the inverses are oldest; with a trust region also in
    each step of the warm-up and of the period after it, when F changes fastest. In
    between, ⟨d, F d⟩ is taken to be the last measured multiple of ⟨g, d⟩.

    Args:
        metric: F.
        gradient: g.
        solved: what was solved for, d.
        strength: λ.
        state: of the transformation.
        trust_region: a bound on the step's KL divergence; None for none.
        divergence: of an update of the parameters; None where it is not known.
        reason: why the step is skipped, 0 if it is not.
    """
    direction, fallback, remainder, iterations = solved.solution
    usable, old = solved.usable, state.health
    slope = tree.inner(gradient, direction)

    def measure():
        if remainder is None:
            product = metric.mv(direction)
            square = tree.inner(direction, product)
            residual = _residual(gradient, direction, product, strength, usable)
        else:
            length = tree.inner(direction, direction)
            square = slope - strength * length - remainder.inner
            residual = _relative(remainder.norm**2, gradient, usable)
        ratio = jnp.where(slope == 0, 0, square / jnp.where(slope == 0, 1, slope))
        return residual, ratio

    if not isinstance(solved.kept, InverseCache):
        residual, ratio = measure()
    else:
        due = solved.measured
        if trust_region is not None:
            due = due | (usable & (solved.kept.age < solved.settled))
        residual, ratio = jax.lax.cond(
            any_over_vmap(due), measure, lambda: (old.residual, old.ratio)
        )
    square, shrink = ratio * slope, jnp.ones_like(slope)
    if trust_region is not None:
        part = lambda t: jax.tree.map(lambda d: t.astype(d.dtype) * d, direction)
        along = None if divergence is None else lambda t: divergence(part(-t))
        shrink = trust_region.shrinkage(state.count, square, along).astype(square.dtype)
        direction = part(shrink)
    decrease = jnp.where(usable, shrink * slope - shrink**2 * square / 2, 0)
    health = Health(
        damping=strength,
        fallback=fallback & usable,
        iterations=jnp.asarray(iterations, old.iterations.dtype),
        residual=residual,
        ratio=ratio,
        predicted_decrease=decrease,
        skipped=~usable,
        skips=tree.increment(old.skips, ~usable),
        reason=reason,
    )
    return health, direction


def _residual(gradient, direction, product, strength, usable) -> Array:
    rest = jax.tree.map(
        lambda f, d, g: f.astype(strength.dtype) + strength * d - g,
        product,
        direction,
        gradient,
    )
    return _relative(tree.inner(rest, rest), gradient, usable)


def _relative(square, gradient, usable) -> Array:
    """√(square / |g|²), with a derivative where it is 0."""
    scale = tree.inner(gradient, gradient)
    safe = jnp.where(scale == 0, 1, scale)
    residual = jnp.where(usable, square / safe, 0)
    return jnp.sqrt(jnp.where(residual == 0, 1, residual)) * (residual != 0)

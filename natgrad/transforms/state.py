"""The state of `scale_by_curvature`: a moving average of statistics, and its health.

    F̄_k = (1 − w_k) F̄_{k−1} + w_k F_k,      w_k = (1 − β) / (1 − βᵏ)

which is Σ_j β^{k−j} F_j over Σ_j β^{k−j}: the exponential average, corrected for its
start. F stands for whatever statistics the curvature keeps. `statistics_update`
averages them; those of a skipped step do not enter the average.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.transforms.radius import RadiusState
from natgrad.typing import Array, ArrayLike, Params, Statistics


class Health(NamedTuple):
    """How the last step went; all scalars.

    Attributes:
        damping: λ; the mean over all parameters where layers have their own.
        fallback: did the solver's first choice of algorithm fail? False for conjugate
            gradients, and where `solver` is called and keeps nothing: it cannot tell.
        iterations: of an iterative solver; 0 for a direct one.
        residual: |(F + λI) d − g| / |g|; with inverses kept over several steps, this
            and the next are those of the last measured step: after 0, 1, 2, 4, 8 …
            periods of the inverses, and once in a hundred steps or so.
        ratio: ⟨d, F d⟩ / ⟨g, d⟩, below 1 for d = (F + λI)⁻¹ g.
        predicted_decrease: ⟨g, d⟩ − ½⟨d, F d⟩, by which the loss falls for the whole
            step −d if F is its curvature, in nats.
        scale: α in [0, 1], by which the trust region shortened the step; 1 for none.
        skipped: was the step skipped?
        skips: how many steps were skipped so far.
        condition: (max s + λ)/(min s + λ) over the eigenvalues s of F. It and the next
            two come of solves by eigenvalues (filters, `Diagonal`, the exact inverse of
            `KFAC`, `EKFAC`). Of others, and of skipped steps, they are not known, and
            all three are 0, which no condition number is.
        rank: how many s are above rounding.
        effective_rank: Σ s/(s + λ), the directions that F determines beside λ.
        reason: why the last step was skipped, a number of
            `natgrad.transforms.health.REASONS`; `natgrad.check_health(state)` raises
            with the reason in words.
    """

    damping: Array
    fallback: Array
    iterations: Array
    residual: Array
    ratio: Array
    predicted_decrease: Array
    scale: Array
    skipped: Array
    skips: Array
    reason: Array
    condition: Array
    rank: Array
    effective_rank: Array


class ScaleByCurvatureState(NamedTuple):
    """State of `scale_by_curvature`.

    Attributes:
        count: steps taken or skipped, which a damping schedule sees.
        key: a raw random key; labels, and whatever else is drawn, come from the next
            (`natgrad.tree.next_key`), which is kept then.
        decay: β.
        estimates: how many statistics went into the average.
        statistics: the average F̄_k.
        inverse: what is kept between refreshes; empty where nothing is.
        health: how the last step went.
        owner: whose state it is, see `natgrad.transforms.observation`.
        velocity: v of a momentum, like the parameters; () without one.
        radius: what an `AdaptiveRadius` knows; () without one.
    """

    count: Array
    key: Array
    decay: Array
    estimates: Array
    statistics: Statistics
    inverse: Any
    health: Health
    owner: dict[str, tuple]
    velocity: Params | tuple[()] = ()
    radius: RadiusState | tuple[()] = ()


def state_of_nothing(
    seed: ArrayLike,
    decay: ArrayLike,
    velocity: Params | tuple[()],
    radius: RadiusState | tuple[()],
) -> ScaleByCurvatureState:
    """The state for parameters without a leaf.

    `optax.tree.map_params` asks for it too: there each leaf stands for whatever lies in
    its place in the state of real parameters, and the parameters for what is like them.

    Args:
        seed: of the random key.
        decay: β.
        velocity: the parameters where there is a momentum, else ().
        radius: as in the state, with the parameters for the last step.
    """

    def zero():
        return jnp.zeros((), jnp.int32)

    return ScaleByCurvatureState(
        count=zero(),
        key=jax.random.PRNGKey(seed),
        decay=jnp.asarray(decay, jnp.float32),
        estimates=zero(),
        statistics=zero(),
        inverse=zero(),
        health=unknown_health(jnp.float32),
        owner=zero(),  # pyright: ignore[reportArgumentType]
        velocity=velocity,
        radius=radius,
    )


def unknown_health(dtype: jnp.dtype) -> Health:
    """The health before the first step, in zeros.

    Args:
        dtype: of damping, residual, ratio and predicted decrease and scale.
    """

    def zero(dtype):  # a buffer for each, so that they can be donated
        return jnp.zeros((), dtype)

    return Health(
        damping=zero(dtype),
        fallback=zero(bool),
        iterations=zero(jnp.int32),
        residual=zero(dtype),
        ratio=zero(dtype),
        predicted_decrease=zero(dtype),
        scale=zero(dtype),
        skipped=zero(bool),
        skips=zero(jnp.int32),
        reason=zero(jnp.int32),
        condition=zero(dtype),
        rank=zero(dtype),
        effective_rank=zero(dtype),
    )

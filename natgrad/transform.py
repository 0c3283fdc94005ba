"""Any curvature as an optax transformation; the only optax code of the library.

    F̄_k = β F̄_{k−1} + (1 − β) F_k            moving average, corrected for its start
    d_k  = (F̄_k/(1 − βᵏ) + λ_k I)⁻¹ g_k       what replaces the gradient g_k

The state holds arrays only and never changes its structure, so it passes through
`jax.jit`, `lax.scan`, `vmap` and checkpoints. A step whose gradient, statistics, damping
or solution are not finite (or whose damping is negative) is skipped: the update is 0,
the statistics stay what they were, and `health` says so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.damping import Damping, as_damping
from natgrad.solvers import Solution, Solver
from natgrad.tree import Layout
from natgrad.typing import Array, ArrayLike, Inputs, Params, Statistics

# The default of `inputs=`, which may be None for a model without inputs.
MISSING: Any = object()


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


def scale_by_curvature(
    curvature: Curvature,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
    solver: Solver | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by (F + λI)⁻¹ g.

    `update` takes the batch as extra arguments:

        tx.update(grads, state, params, inputs=x)               # labels that need none
        tx.update(grads, state, params, inputs=x, targets=y)    # Empirical labels
        tx.update(grads, state, params, statistics=statistics)  # from value_and_grad
        tx.update(grads, state, params)                         # after natgrad.observe

    and, inside `optax.masked` or `optax.multi_transform`, `model_params=` with the
    whole parameter tree, of which `params` is then a part.

    Args:
        curvature: the approximation of the Fisher information.
        damping: λ >= 0, or a schedule of it.
        decay: β of the moving average in [0, 1); 0 uses the current batch alone.
        solver: (metric, gradient, damping) -> direction; None for `metric.solve`.
        seed: of the key for sampled labels.

    Raises:
        ValueError: for impossible arguments, here or at the first `update`.
    """
    damping = as_damping(damping)
    _check_decay(decay, curvature)

    def init(params):
        layout = Layout.of(params)
        zero = jnp.zeros((), layout.dtype)
        no, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
        return ScaleByCurvatureState(
            count=none,
            key=jax.random.PRNGKey(seed),
            decay=jnp.asarray(decay, layout.dtype),
            estimates=none,
            statistics=curvature.init(params),
            health=Health(zero, no, zero, zero, no, none),
        )

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        targets=None,
        statistics=None,
        model_params=None,
        **extra_args,
    ):
        del extra_args  # other transformations' of the same chain
        if params is None:
            raise ValueError(
                "A curvature is computed at the parameters: call "
                "update(gradient, state, params, inputs=x)."
            )
        here = _part(curvature, params, model_params)
        layout = Layout.of(params)
        layout.check(updates, "The gradient")
        _check_arguments(here, state.estimates, inputs, statistics)
        state = state._replace(decay=jnp.asarray(decay, layout.dtype))
        key, draw = jax.random.split(state.key)
        if statistics is None and inputs is not MISSING:
            statistics = here.estimate(params, inputs, targets, draw)
        usable = tree.all_finite(updates)
        if statistics is not None:
            usable = usable & tree.all_finite(statistics)
            state = _average(state, statistics, tree.all_finite(statistics))

        strength = jnp.asarray(damping(state.count), layout.dtype)
        usable = usable & (strength >= 0) & jnp.isfinite(strength)
        safe_strength = jnp.where(usable, strength, 1)
        gradient = tree.where(usable, updates, optax.tree.zeros_like(updates))
        metric = here.metric(
            _corrected(state), params, None if inputs is MISSING else inputs, targets
        )
        if solver is None:
            direction, fallback = metric.solution(gradient, safe_strength)
        else:
            direction, fallback = Solution(
                solver(metric, gradient, safe_strength), jnp.zeros((), bool)
            )
        usable = usable & tree.all_finite(direction)
        direction = tree.where(usable, direction, optax.tree.zeros_like(direction))
        health = _health(
            metric, gradient, direction, strength, fallback, usable, state.health.skips
        )
        state = state._replace(count=state.count + 1, key=key, health=health)
        return direction, state

    return optax.GradientTransformationExtraArgs(init, update)


def observe(
    curvature: Curvature,
    state: Any,
    params: Params,
    *,
    inputs: Inputs,
    targets: Array | None = None,
    model_params: Params | None = None,
) -> Any:
    """Refresh a curvature's statistics inside any optax state.

    For code that can only call `tx.update(grads, state, params)`, such as flax's
    `TrainState`: observe the batch first, and the plain update uses what was observed.

    Args:
        curvature: the specification given to the transformation.
        state: any tree that contains the state of `scale_by_curvature`.
        params: θ, as that transformation sees them.
        inputs: a batch of inputs.
        targets: its labels, for empirical labels.
        model_params: as for `scale_by_curvature`.

    Returns:
        `state` with the statistics of every matching transformation refreshed.

    Raises:
        ValueError: if no part of the state belongs to such a curvature.
    """
    here = _part(curvature, params, model_params)
    if here.instantaneous:
        raise ValueError(
            f"{type(curvature).__name__} keeps no matrix, so there is nothing to "
            "observe: pass inputs= to update, or use a curvature with statistics."
        )
    expected = jax.eval_shape(here.init, params)
    is_state = lambda node: isinstance(node, ScaleByCurvatureState)
    matching = lambda node: is_state(node) and _same_shapes(node.statistics, expected)
    nodes = jax.tree.leaves(state, is_leaf=is_state)
    if not any(matching(node) for node in nodes):
        raise ValueError(
            f"No part of the optimizer state belongs to {type(curvature).__name__} on "
            "these params. Pass the curvature, the params and the state of one and the "
            "same transformation."
        )

    def refresh(node):
        if not matching(node):
            return node
        key, draw = jax.random.split(node.key)
        statistics = here.estimate(params, inputs, targets, draw)
        node = _average(node, statistics, tree.all_finite(statistics))
        return node._replace(key=key)

    return jax.tree.map(refresh, state, is_leaf=is_state)


def _average(state, statistics, finite) -> ScaleByCurvatureState:
    """The state with one more estimate in its moving average, if it is finite."""
    decay = state.decay

    def mix(old, new):
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        mixed = decay.astype(old.dtype) * old + (1 - decay).astype(old.dtype) * new
        return jnp.where(finite, mixed, old)

    return state._replace(
        statistics=jax.tree.map(mix, state.statistics, statistics),
        estimates=state.estimates + finite.astype(state.estimates.dtype),
    )


def _corrected(state) -> Statistics:
    """The moving average divided by the sum of its weights, 1 − βᵏ."""
    exponent = jnp.maximum(state.estimates, 1).astype(state.decay.dtype)
    weight = 1 - state.decay**exponent

    def divide(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return leaf / weight.astype(leaf.dtype)

    return jax.tree.map(divide, state.statistics)


def _health(metric, gradient, direction, strength, fallback, usable, skips) -> Health:
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


def _check_decay(decay: ArrayLike, curvature: Curvature) -> None:
    known = not isinstance(decay, jax.core.Tracer)
    if known and not 0 <= float(decay) < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}.")
    if curvature.instantaneous and not (known and float(decay) == 0):
        raise ValueError(
            f"{type(curvature).__name__} is the curvature of the current batch and "
            f"cannot be averaged: leave decay at 0, got {decay}."
        )


def _check_arguments(curvature, estimates, inputs, statistics) -> None:
    """Raise where neither the batch, nor statistics, nor an observation is there.

    Under jit only the running program knows whether the state was observed, so there
    the same error is raised when it runs.
    """
    if inputs is not MISSING:
        return
    if curvature.instantaneous:
        raise ValueError(
            f"{type(curvature).__name__} is computed from the current batch: call "
            "update(gradient, state, params, inputs=x)."
        )
    if statistics is not None:
        return
    if isinstance(estimates, jax.core.Tracer):
        jax.lax.cond(
            estimates == 0,
            lambda: jax.debug.callback(_raise_if_unobserved, estimates),
            lambda: None,
        )
    else:
        _raise_if_unobserved(estimates)


def _raise_if_unobserved(estimates) -> None:
    if np.any(np.asarray(estimates) == 0):
        raise ValueError(
            "update needs the batch: call update(gradient, state, params, inputs=x), "
            "and targets=y too for Empirical labels. Code that cannot pass inputs "
            "calls natgrad.observe(curvature, state, params, inputs=x) first."
        )


def _same_shapes(statistics, expected) -> bool:
    describe = lambda leaf: (jnp.shape(leaf), jnp.result_type(leaf))
    return jax.tree.structure(statistics) == jax.tree.structure(expected) and (
        jax.tree.map(describe, statistics) == jax.tree.map(describe, expected)
    )


def _part(curvature, params, model_params) -> Curvature:
    """The curvature for the parameters seen here, the others held at model_params."""
    if model_params is not None:
        return curvature.fixing(model_params)
    if tree.has_placeholders(params):
        raise ValueError(
            "This transformation sees a part of the parameters only (optax.masked or "
            "optax.multi_transform). Its model needs all of them: pass the whole tree "
            "as update(..., model_params=params)."
        )
    return curvature

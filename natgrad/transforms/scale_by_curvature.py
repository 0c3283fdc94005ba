"""Any curvature as an optax transformation.

    d_k = (F̄_k + λ_k I)⁻¹ g_k,     F̄_k the moving average of `natgrad.state`

The state holds arrays only and never changes its structure, so it passes through
`jax.jit`, `lax.scan`, `vmap` and checkpoints. For parameters without a leaf, such as
those of a group of `optax.partition` that nobody is in, it has a 0 where statistics
would be, and updates are left alone. A step whose gradient, statistics,
damping or solution are not finite (or whose damping is negative) is skipped: the update
is 0, the statistics stay what they were, and `health` says so.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.control_flow import zeros_unless
from natgrad.curvature.base import Curvature
from natgrad.families import Unnormalized
from natgrad.solvers.base import Solver
from natgrad.transforms import inverse_cache as refreshing
from natgrad.transforms.damping import Damping, TrustRegion, as_damping, check_number
from natgrad.transforms.health import first_failure
from natgrad.transforms.inverse_cache import EVERY_STEP, Refresh
from natgrad.transforms.observation import owner
from natgrad.transforms.state import (
    ScaleByCurvatureState,
    examined,
    state_of_nothing,
    unknown_health,
)
from natgrad.transforms.statistics_update import update_statistics_and_inverse
from natgrad.transforms.validation import MISSING, transformation, validate_update
from natgrad.tree import Layout
from natgrad.typing import ArrayLike


def scale_by_curvature(
    curvature: Curvature,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
    solver: Solver | None = None,
    refresh: Refresh = EVERY_STEP,
    trust_region: TrustRegion | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by (F + λI)⁻¹ g.

    `update` takes the batch as extra arguments:

        tx.update(grads, state, params, inputs=x)               # labels that need none
        tx.update(grads, state, params, inputs=x, targets=y)    # Empirical labels
        tx.update(grads, state, params, statistics=statistics)  # from value_and_grad
        tx.update(grads, state, params, inputs=x, rows=rows)    # value_grad_and_rows
        tx.update(grads, state, params)                         # after natgrad.observe

    With `statistics=` give `inputs=x` too where there is a trust region: it measures
    its divergence on the batch, and without one the quadratic model alone decides.
    `damping=` in place of the rule's λ where something else adapts it and, inside
    `optax.masked` or `optax.multi_transform`, `model_params=` with the whole parameter
    tree, of which `params` is then a part.

    Args:
        curvature: the approximation of the Fisher information.
        damping: λ >= 0, or a schedule of it; in the units of F, where it is λI.
        decay: β of the moving average in [0, 1); 0 uses the current batch alone.
        solver: (metric, gradient, damping) -> direction; None for `metric.solution`.
        refresh: how often statistics and kept inverses are renewed.
        trust_region: a bound on the KL divergence of a step, in nats; None for none.
        seed: of the random key, for sampled labels and whatever else is drawn.

    Raises:
        ValueError: for impossible arguments, here or at the first `update`.
    """
    rule = as_damping(damping)
    _check_decay(decay, curvature)
    refreshing.check(refresh, solver)

    def init(params):
        if not jax.tree.leaves(params):
            return state_of_nothing(seed, decay)
        layout = Layout.of(params)
        here = curvature.specialize(params)
        _check_decay(decay, here)
        return ScaleByCurvatureState(
            count=jnp.zeros((), jnp.int32),
            key=jax.random.PRNGKey(seed),
            decay=jnp.asarray(decay, layout.dtype),
            estimates=jnp.zeros((), jnp.int32),
            statistics=here.init(params),
            inverse=refreshing.init_inverse_cache(refresh, solver, here, params),
            health=unknown_health(layout.dtype),
            owner=owner(curvature, params),
        )

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        targets=None,
        statistics=None,
        rows=None,
        model_params=None,
        damping=None,
        **extra_args,
    ):
        del extra_args  # other transformations' of the same chain
        here = validate_update(
            curvature, updates, state, params, inputs, statistics, model_params
        )
        layout = Layout.of(params)
        state = state._replace(decay=jnp.asarray(decay, layout.dtype))
        key, draw = jax.random.split(state.key)
        strength = rule(state.count) if damping is None else damping
        strength = jnp.asarray(strength, layout.dtype)
        finite = tree.all_finite(updates)
        damped = (strength >= 0) & jnp.isfinite(strength)
        usable = finite & damped
        safe_strength = jnp.where(usable, strength, 1)
        batch = (params, None if inputs is MISSING else inputs, targets)
        often, estimate = refresh, None
        if statistics is not None:
            often = dataclasses.replace(refresh, statistics=1)
            estimate = lambda _: statistics
        elif inputs is not MISSING:
            estimate = lambda here: here.estimate(*batch, draw)
        before = state
        metric_of = lambda statistics: here.metric(statistics, *batch)
        state, usable = update_statistics_and_inverse(
            often, solver, here, state, estimate, metric_of, safe_strength, usable
        )
        known = usable
        metric = metric_of(state.statistics)
        gradient = zeros_unless(usable, updates)
        solved = refreshing.solve(
            refresh,
            solver if rows is None else refreshing.with_row_factors(solver, rows),
            metric,
            state.inverse,
            gradient,
            safe_strength,
            usable,
        )
        if here.requires_batch:  # what is wrong with a batch shows in the solution only
            state = tree.where(solved.usable, state, before)
        reason = first_failure(finite, damped, known, solved.usable)
        divergence = None
        if inputs is not MISSING and not isinstance(here.model.family, Unnormalized):
            divergence = lambda step: here.divergence(
                params, optax.apply_updates(params, step), inputs
            )
        health, direction = examined(
            metric,
            gradient,
            solved,
            strength,
            state,
            trust_region,
            divergence,
            reason,
        )
        state = state._replace(
            count=tree.increment(state.count, period=refresh.statistics),
            key=key,
            inverse=solved.kept,
            health=health,
        )
        return direction, state

    return transformation(init, update)


def _check_decay(decay: ArrayLike, curvature: Curvature) -> None:
    check_number("decay", decay)
    known = not isinstance(decay, jax.core.Tracer)
    if known and not 0 <= float(decay) < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay}.")
    if curvature.requires_batch and not (known and float(decay) == 0):
        raise ValueError(
            f"{type(curvature).__name__} is the curvature of the current batch and "
            f"cannot be averaged: leave decay at 0, got {decay}, or name a curvature "
            "that keeps a matrix, such as natgrad.curvature.Dense or KFAC. Inside "
            "optax.inject_hyperparams keep decay static by static_args='decay'."
        )

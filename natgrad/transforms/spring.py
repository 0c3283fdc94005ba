"""SPRING: momentum inside the damped solve, for every curvature.

    φ_k = (F_k + λI)⁻¹ (g_k + λ μ φ_{k−1})

is the solution of the regularised problem pulled towards μ φ_{k−1} rather than 0,

    φ_k = argmin_φ ½⟨φ, F_k φ⟩ − ⟨g_k, φ⟩ + ½ λ |φ − μ φ_{k−1}|²,

so what one batch does not see is remembered from those before, and what it does see is
solved afresh. μ = 0 is the plain step. The published method has F = B Bᵀ in sample
space; this form of it needs (F + λI)⁻¹ alone. With a filter f in its place
(`natgrad.solvers.filters`) it is φ_k = μ φ_{k−1} + f(F_k) (g_k − μ F_k φ_{k−1}), so
that directions which f drops keep what is remembered. μ may be a rule:
`natgrad.PrincipalRange`.

Source: Goldshlager, Abrahamsen & Lin (2024), A Kaczmarz-inspired approach to accelerate
the optimization of neural network wavefunctions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeGuard, cast

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_in, is_positive
from natgrad.curvature.base import Curvature
from natgrad.eager import call
from natgrad.metrics.base import Metric
from natgrad.solvers.base import Solver
from natgrad.solvers.damping import damping_of_step
from natgrad.transforms.averaging import ByBatch
from natgrad.transforms.damping import Damping, DampingLike, TrustRegion, as_damping
from natgrad.transforms.inverse_cache import EVERY_STEP, Refresh
from natgrad.transforms.principal_range import PrincipalRange
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import (
    MISSING,
    check_state,
    restrict_to_subtree,
    transformation,
)
from natgrad.tree import Layout, of_pairs
from natgrad.typing import Array, ArrayLike, Params

# μ of the paper's experiments.
_MOST = 0.99


class SpringState(NamedTuple):
    """State of `scale_by_spring`.

    Attributes:
        direction: φ of the last step that was not skipped, like the gradient.
        momentum: μ.
        solve: the state of `scale_by_curvature`, whose health is that of the solve.
        principal: what `PrincipalRange` remembers; () of a number.
    """

    direction: Params
    momentum: jax.Array
    solve: ScaleByCurvatureState
    principal: Any = ()


def scale_by_spring(
    curvature: Curvature,
    *,
    damping: DampingLike | Damping = 1e-3,
    momentum: ArrayLike | PrincipalRange | None = None,
    decay: ArrayLike | ByBatch = 0.0,
    solver: Solver | None = None,
    refresh: Refresh = EVERY_STEP,
    trust_region: TrustRegion | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by φ = (F + λI)⁻¹ (g + λ μ φ_before).

    Takes the extra arguments of `scale_by_curvature` but `rows=`, which are of g alone,
    and skips the steps it skips.

    Args:
        curvature: the approximation of the Fisher information.
        damping: λ >= 0 in the units of F, or a schedule of it; by layer too.
        momentum: μ in [0, 1]. None for 1 − η, what is left of φ after a step where F is
            the Hessian, at most 0.99: beyond, what one batch sees and others do not can
            grow. Or `natgrad.PrincipalRange()`, which finds it in each step.
        decay: β of the moving average of F, as for `scale_by_curvature`.
        solver: as for `scale_by_curvature`.
        refresh: as for `scale_by_curvature`.
        trust_region: as for `scale_by_curvature`, without its momentum and weight
            decay; φ is remembered as it was shortened. It has the η that bounds μ.
        seed: as for `scale_by_curvature`.

    Raises:
        ValueError: for impossible arguments; at the first `update` for `rows=`.
    """
    _check_momentum(momentum)
    if trust_region and (trust_region.momentum, trust_region.weight_decay) != (None, 0):
        raise ValueError(f"spring has its own momentum, and no decay: {trust_region}.")
    rule = as_damping(damping)
    inner = scale_by_curvature(
        curvature,
        decay=decay,
        solver=solver,
        refresh=refresh,
        trust_region=trust_region,
        seed=seed,
    )

    def init(params):
        state = cast(ScaleByCurvatureState, inner.init(params))
        found = momentum is None or _is_found(momentum)
        mu = jnp.asarray(0 if found else momentum, state.health.damping.dtype)
        principal = ()
        if _is_found(momentum) and jax.tree.leaves(params):
            principal = momentum.init(Layout.of(params))
        return SpringState(jax.tree.map(jnp.zeros_like, params), mu, state, principal)

    def update(updates, state, params=None, *, damping=None, rows=None, **extra_args):
        if rows is not None:
            raise ValueError(
                "scale_by_spring solves for g + λ μ φ_before, and rows= are of the "
                "gradient g alone: leave them out."
            )
        check_state(state, SpringState)
        tree.check_kept(state.direction, updates)
        own, layout = call(rule, state.solve.count), Layout.of(updates)
        mu, space = _mu(momentum, trust_region, curvature, state, params, extra_args)
        direction, solve = inner.update(
            updates,
            state.solve,
            params,
            damping=damping_of_step(own, damping, layout),
            anchor=jax.tree.map(lambda d: mu.astype(d.dtype) * d, state.direction),
            **extra_args,
        )
        solve = cast(ScaleByCurvatureState, solve)
        last, found = (state.direction, state.principal), (direction, space)
        kept, space = tree.where(solve.health.skipped, last, found)
        return direction, SpringState(kept, mu, solve, space)

    return transformation(*of_pairs(init, update))


def _is_found(momentum: ArrayLike | PrincipalRange | None) -> TypeGuard[PrincipalRange]:
    return isinstance(momentum, PrincipalRange)


def _check_momentum(momentum: ArrayLike | PrincipalRange | None) -> None:
    """Raise a ValueError for an impossible μ."""
    if momentum is None or isinstance(momentum, PrincipalRange):
        return
    check_in("momentum", momentum, lambda mu: 0 <= mu <= 1, "lie in [0, 1]")


def _mu(
    momentum: ArrayLike | PrincipalRange | None,
    trust_region: TrustRegion | None,
    curvature: Curvature,
    state: SpringState,
    params: Params | None,
    extra_args: Mapping[str, Any],
) -> tuple[Array, Any]:
    """(μ, what is remembered of its spectrum), from F with the labels of the step."""
    dtype = state.momentum.dtype
    if not (momentum is None or isinstance(momentum, PrincipalRange)):
        return jnp.asarray(momentum, dtype), state.principal
    rate = trust_region.learning_rate if trust_region else 0.0
    rate = call(rate, state.solve.count) if callable(rate) else rate
    most = jnp.clip(jnp.nan_to_num(1 - jnp.asarray(rate, dtype)), 0)
    if momentum is None:
        return jnp.minimum(most, _MOST), state.principal
    reader = "PrincipalRange() reads the spectrum of F"
    metric = metric_of_step(reader, curvature, state.solve, params, extra_args)
    mu, principal = momentum.update(metric, state.principal)
    return jnp.minimum(mu, most), principal


def metric_of_step(
    reader: str,
    curvature: Curvature,
    state: ScaleByCurvatureState,
    params: Params | None,
    extra_args: Mapping[str, Any],
) -> Metric:
    """F of the batch with the labels that the step solves with.

    Args:
        reader: who reads what of F, for the error.
        curvature: the approximation.
        state: before the step.
        params: θ.
        extra_args: of `update`.

    Raises:
        ValueError: there are no inputs or parameters.
    """
    inputs = extra_args.get("inputs", MISSING)
    if inputs is MISSING or params is None:
        raise ValueError(
            f"{reader} of each batch: call update(gradient, state, params, inputs=x)."
        )
    own = restrict_to_subtree(curvature, params, extra_args.get("model_params"))
    return own.at(params, inputs, extra_args.get("targets"), tree.next_key(state.key))


def scale_by_norm_constraint(
    learning_rate: optax.ScalarOrSchedule, constraint: ArrayLike = 1e-3
) -> optax.GradientTransformationExtraArgs:
    """Shrink φ so that the squared length of the step, |η φ|², is at most c.

        φ ← φ min(1, √c / (η |φ|))

    Args:
        learning_rate: η, the same as that of the transformation that follows.
        constraint: c > 0, in squared units of the parameters.

    Raises:
        ValueError: for a constraint that is known and not positive.
    """
    rate = learning_rate if callable(learning_rate) else lambda _: learning_rate
    check_in("constraint", constraint, is_positive, "be positive")

    def init(params):
        tree.check_params(params)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(updates, state, params=None, **extra_args):
        del params, extra_args
        square = call(rate, state.count) ** 2 * tree.inner(updates, updates)
        outside = square > constraint
        shrink = jnp.where(
            outside, jnp.sqrt(constraint / jnp.where(outside, square, 1)), 1
        )
        updates = jax.tree.map(lambda u: shrink.astype(u.dtype) * u, updates)
        return updates, optax.ScaleByScheduleState(tree.increment(state.count))

    return transformation(*of_pairs(init, update))

"""Geodesic acceleration: the second-order correction of a natural gradient step.

The path θ(t) along which the outputs z move straight starts with velocity v and has the
acceleration a,

    v = −(F + λI)⁻¹ g,     a = −(F + λI)⁻¹ (1/N) Σ_n J_nᵀ F_{z_n} z_n″[v, v],

and the step is v + a/2: for normal outputs that of the published method, for others the
geodesic of the connection that is flat in z. z″[v, v] is a forward derivative of a
forward derivative; a is one more solve with the same metric. Where |a| > α |v| the
expansion in t is not to be trusted, and the step is v.

Source: Transtrum & Sethna (2012), Improvements to the Levenberg-Marquardt algorithm for
nonlinear least-squares minimization, sections 2 and 4.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from natgrad import tree
from natgrad.curvature.labels import Labels
from natgrad.model import Model
from natgrad.transforms.adaptive.quadratic_forms import (
    EXACT,
    cast_like,
    check_batch,
    part,
)
from natgrad.transforms.validation import MISSING, transformation
from natgrad.tree import of_pairs
from natgrad.typing import Array, ArrayLike, Inputs, Params


class GeodesicAccelerationState(NamedTuple):
    """State of `geodesic_acceleration`.

    Attributes:
        ratio: |a| / |v| of the last step.
        inner: the state of the solve.
    """

    ratio: Float[Array, ""]
    inner: Any


def geodesic_acceleration(
    inner: optax.GradientTransformation,
    model: Model,
    *,
    limit: ArrayLike = 0.75,
    labels: Labels = EXACT,
) -> optax.GradientTransformationExtraArgs:
    """Add half the acceleration to the direction of `inner`.

    `inner` replaces g by (F + λI)⁻¹ g, such as `scale_by_curvature`; it is asked twice
    from the same state, so both solves have one metric (and one compiled estimate of
    it). What comes out is −(v + a/2), for whole steps: follow it by
    `optax.scale(-1.0)`. `update` takes `inputs=x`.

    Args:
        inner: the solve; linear in the gradient.
        model: the statistical model.
        limit: α; 0 never accelerates.
        labels: whose F_z, as for `fisher_forms`.

    Returns:
        The transformation, in place of `inner`.

    Raises:
        ValueError: in `update`, where `inputs=` or `params` is missing.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params):
        tree.check_params(params)
        dtype = tree.working_dtype(params)
        return GeodesicAccelerationState(jnp.zeros((), dtype), inner.init(params))

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        model_params=None,
        judge_by=None,
        **extra_args,
    ):
        check_batch("geodesic_acceleration", params, inputs)
        arguments = extra_args | {"inputs": inputs, "model_params": model_params}

        def solve(gradient):
            return inner.update(gradient, state.inner, params, **arguments)

        direction, inner_state = solve(updates)
        force = second_directional_derivative(
            part(model, model_params), params, inputs, direction, labels
        )
        finite = tree.all_finite(force)
        acceleration, _ = solve(tree.where(finite, force, updates))
        step, ratio = _accelerated(direction, acceleration, finite, limit)
        if judge_by is not None:  # by `levenberg_marquardt`: a/2 is not in M
            judge_by(jax.tree.map(jnp.negative, direction))
        return step, GeodesicAccelerationState(
            ratio.astype(state.ratio.dtype), inner_state
        )

    return transformation(*of_pairs(init, update))


def _accelerated(
    direction: Params, acceleration: Params, finite: Array, limit: ArrayLike
) -> tuple[Params, Array]:
    """(v + a/2, |a|/|v|), with signs as the solve gives them; v where a is too long."""
    square = tree.inner(direction, direction)
    curved = tree.inner(acceleration, acceleration)
    usable = finite & (square > 0) & (curved <= jnp.asarray(limit) ** 2 * square)
    # −(v + a/2) for v = −direction, a = −acceleration.
    step = jax.tree.map(
        lambda d, a: d + jnp.where(usable, a / 2, 0).astype(d.dtype),
        direction,
        acceleration,
    )
    ratio = _root(curved / jnp.where(square > 0, square, 1))
    return step, jnp.where(square > 0, ratio, 0)


def second_directional_derivative(
    model: Model, params: Params, inputs: Inputs, v: Params, labels: Labels = EXACT
) -> Params:
    """(1/N) Σ_n J_nᵀ F_{z_n} z_n″[v, v], shaped like the parameters.

    Args:
        model: the statistical model.
        params: θ.
        inputs: a batch.
        v: a direction; its sign does not matter.
        labels: whose F_z.

    Returns:
        The vector, in the dtypes of the parameters.
    """
    outputs, examples, total = model.whole(params, inputs)
    v = cast_like(v, params)

    def velocity(params):
        return jax.jvp(outputs, (params,), (v,))[1]

    _, second = jax.jvp(velocity, (params,), (v,))
    z, pull_back = jax.vjp(outputs, params)
    products = labels.products(model, z, examples, total, second)
    return pull_back((products / total).astype(z.dtype))[0]


def _root(square: Array) -> Array:
    """√, with derivative 0 at 0."""
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)

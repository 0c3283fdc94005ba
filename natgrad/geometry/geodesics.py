"""Geodesics of the e-, m- and α-connections, exponential and logarithm maps.

An e-geodesic is straight in η, an m-geodesic straight in μ; both are closed forms. The
others solve x'' = −Γ^(α)(x', x') with equal steps of order 8, in the chart of the
tangent, whose coordinates should be unconstrained. The logarithm is found by shooting
with Newton's method; its derivative is implicit.

Source: Amari (2016), sections 2.4 and 5.9; Hairer, Nørsett & Wanner, Solving Ordinary
Differential Equations I (2nd ed.), sections II.1 and II.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad.arguments import check_count
from natgrad.geometry.connections import LEVI_CIVITA, christoffel_contraction
from natgrad.geometry.points import Point, Tangent
from natgrad.geometry.roots import newton_root
from natgrad.geometry.validation import expected, same_chart, same_family
from natgrad.typing import Array, ArrayLike

STEPS = 24

# A right-hand side: state -> its derivative, pytrees of the same structure.
Derivative = Callable[[Any], Any]

_SUBSTEPS = np.array([2, 4, 6, 8])
_WEIGHTS = np.array(
    [np.prod([n**2 / (n**2 - k**2) for k in _SUBSTEPS if k != n]) for n in _SUBSTEPS]
)


class Logarithm(NamedTuple):
    """A tangent whose geodesic leads to the target.

    Attributes:
        tangent: at the start, in its chart.
        residual: how far from the target the geodesic ends, in the norm of the chart.
    """

    tangent: Tangent
    residual: Float[Array, ""]


def e_geodesic(start: Point, end: Point, t: ArrayLike) -> Point:
    """The point (1 − t) η_start + t η_end of the e-geodesic between two laws.

    Args:
        start: the law at t = 0.
        end: the law at t = 1, of the same family.
        t: where on the geodesic, shape ().

    Returns:
        The law, in the chart of `start`.

    Raises:
        ValueError: the points are of different families.
    """
    return _mixed("natural", start, end, t)


def m_geodesic(start: Point, end: Point, t: ArrayLike) -> Point:
    """The point (1 − t) μ_start + t μ_end of the m-geodesic between two laws.

    Args:
        start: the law at t = 0.
        end: the law at t = 1, of the same family.
        t: where on the geodesic, shape ().

    Returns:
        The law, in the chart of `start`.

    Raises:
        ValueError: the points are of different families.
    """
    return _mixed("expectation", start, end, t)


def exponential(
    v: Tangent, alpha: ArrayLike = LEVI_CIVITA, *, steps: int = STEPS
) -> Point:
    """The point where the α-geodesic with velocity v is after time 1.

    Args:
        v: the initial velocity.
        alpha: 1 for e-, −1 for m-, 0 for Levi-Civita geodesics.
        steps: of the integrator; the error is of order steps⁻⁸.

    Returns:
        The point, in the chart of v.

    Raises:
        ValueError: `v` is not a Tangent, alpha not one number, or `steps` no integer
            of at least 1.
    """
    return transported(v, alpha, steps=steps).point


def transported(
    v: Tangent, alpha: ArrayLike = LEVI_CIVITA, *, steps: int = STEPS
) -> Tangent:
    """The velocity of the α-geodesic with velocity v after time 1.

    Args:
        v: the initial velocity.
        alpha: as for `exponential`.
        steps: as for `exponential`.

    Returns:
        The velocity, a tangent at the point where the geodesic is then.

    Raises:
        ValueError: as of `exponential`.
    """
    expected(Tangent, v, "the velocity of a geodesic")
    check_count("steps", steps)
    point = v.point
    h = 1 / steps

    def derivative(state):
        x, x_dot = state
        return x_dot, -christoffel_contraction(
            Tangent(point.at(x), x_dot), alpha
        ).components

    def step(state, _):
        return extrapolated_midpoint(derivative, state, h), None

    start = (point.coordinates, v.components)
    (x, x_dot), _ = jax.lax.scan(step, start, None, length=steps)
    return Tangent(point.at(x), x_dot)


def runge_kutta(derivative: Derivative, state: Any, h: ArrayLike) -> Any:
    """One step of the classical fourth-order Runge-Kutta method.

    Args:
        derivative: state -> its derivative in time.
        state: a tree of floating arrays.
        h: the length of the step in time.

    Returns:
        The state after the step.
    """
    dtype = jax.tree.leaves(state)[0].dtype
    h = jnp.asarray(h, dtype)
    ahead = lambda s, c, slope: jax.tree.map(lambda s, k: s + c * h * k, s, slope)

    def stage(carry, coefficients):
        slope, end = carry
        place, weight = coefficients
        slope = derivative(ahead(state, place, slope))
        return (slope, ahead(end, weight, slope)), None

    coefficients = jnp.array([[0, 1], [1 / 2, 2], [1 / 2, 2], [1, 1]], dtype)
    stages = (coefficients[:, 0], coefficients[:, 1] / 6)
    start = (jax.tree.map(jnp.zeros_like, state), state)
    return jax.lax.scan(stage, start, stages)[0][1]


def extrapolated_midpoint(derivative: Derivative, state: Any, h: ArrayLike) -> Any:
    """One step of order 8 by Gragg's method of Bulirsch and Stoer.

    The midpoint rule with 2, 4, 6 and 8 substeps has an error in even powers of their
    size, of which the first three cancel in the weighted sum. All four run side by
    side.

    Args:
        derivative: state -> its derivative in time.
        state: a tree of floating arrays.
        h: the length of the step in time.

    Returns:
        The state after the step.
    """

    def lane(n):
        substep = (h / n).astype(jax.tree.leaves(state)[0].dtype)

        def leap(pair, i):
            before, here = pair
            # The first is Euler's, half as far: there is nothing before the state.
            far = jnp.where(i == 0, substep, 2 * substep)
            after = jax.tree.map(lambda s, k: s + far * k, before, derivative(here))
            keep = lambda new, old: jnp.where(i < n, new, old)
            return jax.tree.map(keep, (here, after), pair), None

        (_, end), _ = jax.lax.scan(leap, (state, state), jnp.arange(_SUBSTEPS[-1]))
        return end

    ends = jax.vmap(lane)(jnp.asarray(_SUBSTEPS))
    return jax.tree.map(
        lambda end: jnp.tensordot(jnp.asarray(_WEIGHTS, end.dtype), end, axes=1), ends
    )


def logarithm(
    start: Point, end: Point, alpha: ArrayLike = LEVI_CIVITA, *, steps: int = STEPS
) -> Logarithm:
    """The tangent v at `start` with exponential(v) = `end`, by shooting.

    Args:
        start: the law whose chart is used; unconstrained coordinates are best.
        end: a law in the same chart.
        alpha: as for `exponential`.
        steps: as for `exponential`.

    Returns:
        The tangent, and by how much its geodesic misses the target.

    Raises:
        ValueError: the points are not in one chart of one family.
    """
    expected(Point, start, "logarithm")
    same_chart(start, end)
    shape = start.coordinates.shape

    def miss(flat_v):
        v = start.tangent(flat_v.reshape(shape))
        reached = exponential(v, alpha, steps=steps)
        return (reached.coordinates - end.coordinates).ravel()

    # From rest, where the map is the identity. From end − start, which may overshoot by
    # far, Newton's method finds longer geodesics, or none.
    v, residual = newton_root(miss, jnp.zeros_like(start.coordinates).ravel())
    return Logarithm(start.tangent(v.reshape(shape)), residual)


def _mixed(chart: str, start: Point, end: Point, t: ArrayLike) -> Point:
    expected(Point, start, "a geodesic")
    same_family(start, end)
    a, b = start.to(chart), end.to(chart)
    t = jnp.asarray(t, a.coordinates.dtype)
    mixed = (1 - t) * a.coordinates + t * b.coordinates
    return a.at(mixed).to(start.chart)

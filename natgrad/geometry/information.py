"""The Fisher information in any chart: the metric that makes a covector a tangent.

By pull-back, with J_η = ∂η/∂x and J_μ = ∂μ/∂x,

    F_x = J_ηᵀ F_η J_η = J_ηᵀ J_μ,     F_μ = F_η⁻¹.

Source: Amari (2016), sections 2.2 and 2.3.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.geometry.points import Covector, Point, Tangent
from natgrad.geometry.validation import expected
from natgrad.typing import Array


def fisher(point: Point) -> Float[Array, "*xx"]:
    """The Fisher information in the point's chart.

    Args:
        point: where, and in which chart.

    Returns:
        F, shape x.shape + x.shape, symmetric and positive semi-definite.

    Raises:
        ValueError: `point` is not a Point.
    """
    expected(Point, point, "fisher")
    shape = point.coordinates.shape
    return fisher_matrix(point).reshape(shape + shape)


def fisher_matrix(point: Point) -> Float[Array, "P P"]:
    """The Fisher information in the point's chart as a matrix.

    Args:
        point: where, and in which chart.

    Returns:
        F [P, P] for P coordinates.
    """
    to_natural, to_mean = jacobians(point)
    matrix = jnp.matmul(to_natural.T, to_mean, precision="highest")
    return (matrix + matrix.T) / 2


def jacobians(point: Point) -> tuple[Float[Array, "E P"], Float[Array, "E P"]]:
    """The derivatives of η and μ in the coordinates of the point's chart.

    Args:
        point: where, and in which chart.

    Returns:
        J_η and J_μ, matrices with a column for each coordinate.
    """
    x = point.coordinates
    maps = point.chart.to_natural, point.chart.mean_map(point.family)
    j_natural, j_mean = (jax.jacfwd(f)(x).reshape(-1, x.size) for f in maps)
    return j_natural, j_mean


def gradient(loss: Callable[[Point], Array], point: Point) -> Covector:
    """The differential of a loss in the point's chart.

    Args:
        loss: a function of a Point, shape ().
        point: where, and in which chart.

    Returns:
        The covector of partial derivatives.

    Raises:
        ValueError: `point` is not a Point.
    """
    expected(Point, point, "gradient")
    components = jax.grad(lambda x: loss(point.at(x)))(point.coordinates)
    return Covector(point, components)


def inner(v: Tangent, w: Tangent) -> Float[Array, ""]:
    """The inner product ⟨v, w⟩ = vᵀ F w, the same in every chart.

    Args:
        v: a tangent.
        w: a tangent at the same point, in the same chart.

    Returns:
        The product, shape ().

    Raises:
        ValueError: an argument is not a Tangent, or they are in different charts, or at
            points that are known to be different.
    """
    expected(Tangent, v, "inner")
    expected(Tangent, w, "inner")
    return flat(v)(w)


def norm(v: Tangent) -> Float[Array, ""]:
    """The speed √⟨v, v⟩ of a tangent.

    Args:
        v: a tangent.

    Returns:
        The speed in units of statistical distance, shape (); its derivative at 0 is 0.
    """
    squared = inner(v, v)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def flat(v: Tangent) -> Covector:
    """The covector F v that belongs to a tangent.

    Args:
        v: a tangent.

    Returns:
        The covector at the same point, in the same chart.

    Raises:
        ValueError: `v` is not a Tangent.
    """
    expected(Tangent, v, "flat")
    x, components = v.point.coordinates, v.components
    eta_dot = jax.jvp(v.point.chart.to_natural, (x,), (components,))[1]
    (product,) = jax.vjp(v.point.chart.mean_map(v.point.family), x)[1](eta_dot)
    return Covector(v.point, product)


def sharp(g: Covector) -> Tangent:
    """The tangent F⁻¹ g that belongs to a covector.

    Args:
        g: a covector.

    Returns:
        The tangent: the natural gradient, if g is a gradient.

    Raises:
        ValueError: `g` is not a Covector.
    """
    expected(Covector, g, "sharp")
    return Tangent(g.point, raise_index(g.point, g.components))


def raise_index(point: Point, components: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """The solution v of F v = g in the point's chart.

    Args:
        point: where, and in which chart.
        components: g, shaped like the coordinates.

    Returns:
        F⁻¹ g, shaped like the coordinates. Where the chart has a gauge, it is the
        solution that the gauge sends to 0.
    """
    shape = components.shape
    matrix = fisher_matrix(point)
    if point.chart.gauge is not None:
        free = jax.jacfwd(point.chart.gauge)(jnp.zeros_like(point.coordinates))
        matrix = matrix + free.reshape(matrix.shape)
    return _solve(matrix, components.ravel()).reshape(shape)


def _solve(matrix: Array, v: Array) -> Array:
    """The solution of a positive definite system, scaled to a unit diagonal."""
    scale = jax.lax.rsqrt(jnp.diagonal(matrix))
    scaled = matrix * scale[:, None] * scale[None, :]
    return scale * jnp.linalg.solve(scaled, scale * v)

"""The Fisher information in any chart: the metric that makes a covector a tangent.

By pull-back, with J_η = ∂η/∂x and J_μ = ∂μ/∂x,

    F_x = J_ηᵀ F_η J_η = J_ηᵀ J_μ,     F_μ = F_η⁻¹.

Source: Amari (2016), sections 2.2 and 2.3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natgrad.geometry.points import (
    Covector,
    Point,
    Tangent,
    expected,
    mean_map,
    same_chart,
)
from natgrad.typing import Array


def fisher(point: Point) -> Array:
    """F in the point's chart, of shape x.shape + x.shape."""
    expected(Point, point, "fisher")
    shape = point.coordinates.shape
    return fisher_matrix(point).reshape(shape + shape)


def fisher_matrix(point: Point) -> Array:
    """F in the point's chart as a matrix [P, P] for P coordinates."""
    to_natural, to_mean = jacobians(point)
    matrix = jnp.matmul(to_natural.T, to_mean, precision="highest")
    return (matrix + matrix.T) / 2


def jacobians(point: Point) -> tuple[Array, Array]:
    """(J_η, J_μ) at the point, matrices with a column for each of its coordinates."""
    x = point.coordinates
    maps = point.chart.to_natural, mean_map(point)
    j_natural, j_mean = (jax.jacfwd(f)(x).reshape(-1, x.size) for f in maps)
    return j_natural, j_mean


def inner(v: Tangent, w: Tangent) -> Array:
    """⟨v, w⟩ = vᵀ F w, shape (): the same in every chart."""
    expected(Tangent, v, "inner")
    expected(Tangent, w, "inner")
    same_chart(v.point, w.point)
    return flat(v)(w)


def norm(v: Tangent) -> Array:
    """√⟨v, v⟩: the speed, in units of statistical distance, shape ()."""
    squared = inner(v, v)
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def flat(v: Tangent) -> Covector:
    """The covector F v."""
    expected(Tangent, v, "flat")
    x, components = v.point.coordinates, v.components
    eta_dot = jax.jvp(v.point.chart.to_natural, (x,), (components,))[1]
    (product,) = jax.vjp(mean_map(v.point), x)[1](eta_dot)
    return Covector(v.point, product)


def sharp(g: Covector) -> Tangent:
    """The tangent F⁻¹ g: the natural gradient, if g is a gradient."""
    expected(Covector, g, "sharp")
    return Tangent(g.point, raise_index(g.point, g.components))


def raise_index(point: Point, components: Array) -> Array:
    """F⁻¹ g in the point's chart, shaped like the coordinates."""
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

"""Steps on a manifold: from a point along a tangent, never out of the domain.

Every step ends with `natgrad.geometry.domain.retract_into_domain`, which states the
construction and the proof that the end lies inside, for every step size and from every
interior point, and that it is smooth. Shorter steps than 99 % of the way to the
boundary are not changed at all, so each is its textbook form there:

    retract            x' = x + h v
    geodesic_retract   x' = x + h v − h²/2 Γ(v, v)
    natural_step       v = F⁻¹ ∇L,  retract by −h
    proximal_step      q = argmin L(q) + D(q, p)/h

Natural-gradient steps in two charts differ at order h², and those of `geodesic_retract`
at order h³: over a path the spread is of order 1 and 2. In the expectation chart the
natural gradient is μ' = μ − h ∇_η L, mirror descent with potential A; in the natural
chart η' = η − h ∇_μ L, mirror descent with potential A*.

Source: Amari (1998), Natural gradient works efficiently in learning; Raskutti &
Mukherjee (2015), The information geometry of mirror descent; Song, Song & Ermon (2018),
Accelerating natural gradient with higher-order invariance, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.geometry.atlases import inside
from natgrad.geometry.connections import LEVI_CIVITA, christoffel_contraction
from natgrad.geometry.domain import retract_into_domain
from natgrad.geometry.geodesics import runge_kutta
from natgrad.geometry.information import gradient, sharp
from natgrad.geometry.points import Point, Tangent
from natgrad.geometry.roots import newton_root
from natgrad.geometry.validation import expected
from natgrad.typing import Array, ArrayLike

Loss = Callable[[Point], Array]
# (new law, old law) -> nats, least where both are the same
Divergence = Callable[[Point, Point], Array]


def retract(v: Tangent, h: ArrayLike = 1.0) -> Point:
    """The end of the straight step h v in the tangent's chart, inside the domain.

    Args:
        v: a tangent.
        h: the step size, a scalar of any sign.

    Returns:
        A point in the same chart.

    Raises:
        ValueError: `v` is not a Tangent.
    """
    expected(Tangent, v, "retract")
    x = v.point.coordinates
    step = jnp.asarray(h, x.dtype) * v.components
    return v.point.at(retract_into_domain(v.point.chart, x, step))


def geodesic_retract(
    v: Tangent, h: ArrayLike = 1.0, alpha: ArrayLike = LEVI_CIVITA
) -> Point:
    """The end of the step h v − h²/2 Γ(v, v): the α-geodesic to second order in h.

    It costs second derivatives along v and one solve more than `retract`.

    Args:
        v: a tangent.
        h: the step size, a scalar of any sign.
        alpha: 1 for e-, −1 for m-, 0 for Levi-Civita geodesics.

    Returns:
        A point in the same chart, inside its domain.

    Raises:
        ValueError: `v` is not a Tangent.
    """
    expected(Tangent, v, "geodesic_retract")
    x = v.point.coordinates
    h = jnp.asarray(h, x.dtype)
    bent = christoffel_contraction(v, alpha).components
    step = h * (v.components - h / 2 * bent)
    return v.point.at(retract_into_domain(v.point.chart, x, step))


def natural_gradient(loss: Loss, point: Point) -> Tangent:
    """F⁻¹ ∇L in the point's chart: the direction of steepest ascent.

    Args:
        loss: a function of a Point, in nats, shape ().
        point: where, and in which chart.

    Returns:
        The tangent.
    """
    return sharp(gradient(loss, point))


def natural_step(loss: Loss, point: Point, h: ArrayLike) -> Point:
    """The natural-gradient step −h F⁻¹ ∇L, straight in the point's chart.

    Args:
        loss: a function of a Point, in nats, shape ().
        point: where the step starts.
        h: the step size.

    Returns:
        A point in the same chart, inside its domain.
    """
    return retract(-natural_gradient(loss, point), h)


def geodesic_step(loss: Loss, point: Point, h: ArrayLike) -> Point:
    """The natural-gradient step with the geodesic correction of `geodesic_retract`.

    Args:
        loss: a function of a Point, in nats, shape ().
        point: where the step starts.
        h: the step size.

    Returns:
        A point in the same chart, inside its domain.
    """
    return geodesic_retract(-natural_gradient(loss, point), h)


def flow_step(loss: Loss, point: Point, h: ArrayLike) -> Point:
    """The natural-gradient flow x' = −F⁻¹ ∇L for time h, by one Runge-Kutta step.

    The flow is the same in every chart; this step of it is so to fourth order.

    Args:
        loss: a function of a Point, in nats, shape ().
        point: where the step starts.
        h: the time.

    Returns:
        A point in the same chart, inside its domain.
    """
    velocity = lambda x: -natural_gradient(loss, point.at(x)).components
    end = runge_kutta(velocity, point.coordinates, h)
    step = end - point.coordinates
    return point.at(retract_into_domain(point.chart, point.coordinates, step))


class Proximal(NamedTuple):
    """The result of a proximal step.

    Attributes:
        point: the minimum, in the chart of the start.
        residual: the norm of the gradient there, shape (); 0 up to rounding.
    """

    point: Point
    residual: Float[Array, ""]


def proximal_step(
    loss: Loss,
    point: Point,
    h: ArrayLike,
    divergence: Divergence = Point.kl,
) -> Proximal:
    """The Bregman-proximal step: the law q that minimises L(q) + D(q, point)/h.

    It is the implicit counterpart of the natural gradient: with D = KL(q ‖ point), the
    default, η_q = η − h ∇_μ L(q); with D = KL(point ‖ q), μ_q = μ − h ∇_η L(q). It is
    solved by Newton's method in the point's chart; its derivative is implicit.

    Args:
        loss: a function of a Point, in nats; convex in the chart, or h small enough.
        point: where the step starts.
        h: the step size.
        divergence: (new law, old law) -> nats.

    Returns:
        The law, and the norm of the gradient there.

    Raises:
        ValueError: `point` is not a Point.
    """
    expected(Point, point, "proximal_step")
    chart, start = point.chart, point.coordinates

    def objective(x):
        q = point.at(x)
        return h * loss(q) + divergence(q, point)

    def residual(flat_x):
        x = flat_x.reshape(start.shape)
        slope = jax.grad(objective)(x).ravel()
        return jnp.where(inside(chart, x), slope, jnp.nan)

    x, error = newton_root(residual, start.ravel())
    return Proximal(point.at(x.reshape(start.shape)), error)

"""Trust regions: steps of a given KL divergence, exact or to second order.

TRPO takes the length √(2δ/vᵀFv), whose divergence is δ only to second order. Here the
length t with

    KL(p ‖ retract(v, t)) = δ

is found by a scalar root, with the derivative of the implicit function theorem.

Source: Schulman et al. (2015), Trust region policy optimization, appendix C.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.arguments import check_in, is_positive
from natgrad.geometry.information import inner
from natgrad.geometry.points import Point, Tangent
from natgrad.geometry.roots import bracketed_root
from natgrad.geometry.steps import retract
from natgrad.geometry.validation import expected
from natgrad.typing import Array, ArrayLike

_LONGEST = 14.0  # of log(t/t₂): a million times the quadratic length
_SHORTEST = -40.0


class TrustRegionStep(NamedTuple):
    """A step of bounded divergence.

    Attributes:
        point: where it ends.
        length: t, in units of the tangent.
        kl: KL(start ‖ end) in nats.
        reached: boolean; false where the chart ends before the divergence is δ, or
            the tangent is 0: the step is then as long as the chart allows.
    """

    point: Point
    length: Float[Array, ""]
    kl: Float[Array, ""]
    reached: Bool[Array, ""]


def trust_region_step(v: Tangent, radius: ArrayLike) -> TrustRegionStep:
    """The step along v, straight in its chart, with KL(start ‖ end) = radius.

    Args:
        v: the direction, such as −natural_gradient(loss, point); its length is free.
        radius: δ > 0 in nats.

    Returns:
        Where the step ends, its length, its divergence, and whether that is δ.

    Raises:
        ValueError: `v` is not a Tangent, or the radius is known not to be positive.
    """
    expected(Tangent, v, "trust_region_step")
    length = _quadratic_length(v, radius)
    log_radius = jnp.log(jnp.asarray(radius, length.dtype))

    def excess(s):
        kl = v.point.kl(retract(v, length * jnp.exp(s)))
        positive = kl > 0
        log_kl = jnp.log(jnp.where(positive, kl, 1))
        return jnp.where(positive, log_radius - log_kl, 1)

    longest = jnp.asarray(_LONGEST, length.dtype)
    reached = ~(excess(longest) >= 0)
    s = bracketed_root(
        lambda s: jnp.where(reached, excess(s), longest - s),
        jnp.asarray(_SHORTEST, length.dtype),
        longest,
    )
    return _step(v, length * jnp.exp(s), reached)


def quadratic_trust_region_step(v: Tangent, radius: ArrayLike) -> TrustRegionStep:
    """The step of length √(2δ/vᵀFv) along v; `kl` says what its divergence really is.

    Args:
        v: the direction.
        radius: δ > 0 in nats, of the quadratic form ½ t² vᵀFv.

    Returns:
        Where the step ends, its length, its divergence, and whether v is not 0.

    Raises:
        ValueError: `v` is not a Tangent, or the radius is known not to be positive.
    """
    expected(Tangent, v, "quadratic_trust_region_step")
    return _step(v, _quadratic_length(v, radius), inner(v, v) > 0)


def _quadratic_length(v: Tangent, radius: ArrayLike) -> Array:
    check_in("radius", radius, is_positive, "be positive, in nats")
    squared = inner(v, v)
    moving = squared > 0
    return jnp.where(moving, jnp.sqrt(2 * radius / jnp.where(moving, squared, 1)), 1)


def _step(v: Tangent, length: Array, reached: Array) -> TrustRegionStep:
    end = retract(v, length)
    return TrustRegionStep(end, length, v.point.kl(end), reached)

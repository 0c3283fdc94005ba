"""Straight steps that stay in the domain, for every step size, smoothly.

A chart's domain is {c_1 > 0, …, c_M > 0} with concave c_i. Along x + t d, what is kept
of the margins is measured by their harmonic mean

    m(t) = M/Σ_i [c_i(x)/c_i(x + t d)],     m(0) = 1,

and the step ends at x + f d with

    f = t* s(1/t*),  m(t*) = κ,  s(u) = u for u ≤ θ, else θ + (1 − θ) tanh (u−θ)/(1−θ),

κ = 1e-3 and θ = 0.99, or f = 1 where there is no such t* below 1/θ.

It stays inside. The ratios are concave in t and the harmonic mean is concave and
increasing, so m is concave; s < 1, hence 0 ≤ f ≤ t* and m(f) ≥ min(m(0), m(t*)) = κ.
Then Σ c_i(x)/c_i(x + f d) ≤ M/κ, so every c_i keeps at least the part κ/M of its value.

It is smooth. Where t* exists m is smooth at it, with slope m'(t*) < 0 by concavity and
m(0) > m(t*), so t* is a smooth function of (x, d); s is twice continuously
differentiable, and at 1/t* = θ both cases give f = 1.

It is the straight step to second order, indeed exactly: f = 1 for all d of length up to
θ t*, which leaves all but the steps that use up 99 % of the way to where m = κ.

In floating point, an end whose margins come out as not positive, or that is not finite,
is replaced by the start; a NaN in d is handed on.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.geometry.atlases import Chart, inside
from natgrad.geometry.roots import bracketed_root
from natgrad.typing import Array

KEPT = 1e-3  # κ
STRAIGHT = 0.99  # θ
_SMALLEST = -87.0  # of log t: the least normal number of float32


def retract_into_domain(
    chart: Chart, x: Float[Array, "*x"], d: Float[Array, "*x"]
) -> Float[Array, "*x"]:
    """The end of a step, shortened so that it is a point of the chart's domain.

    Args:
        chart: the chart.
        x: coordinates inside the domain.
        d: the step, shaped like x, of any length.

    Returns:
        x + f d with 0 < f ≤ 1, shaped like x; x where no such end can be computed.
    """
    return displaced_part(chart, x, d)[0]


def displaced_part(
    chart: Chart, x: Float[Array, "*x"], d: Float[Array, "*x"]
) -> tuple[Float[Array, "*x"], Float[Array, ""]]:
    """The end of a step as in `retract_into_domain`, and how much of it was taken.

    Args:
        chart: the chart.
        x: coordinates inside the domain.
        d: the step, shaped like x.

    Returns:
        The end, shaped like x, and the part f, shape (); f is 0 where x is returned.
    """
    part = fraction(chart, x, d)
    end = x + part * d
    usable = inside(chart, end) | jnp.any(jnp.isnan(d))
    return jnp.where(usable, end, x), jnp.where(usable, part, 0)


def fraction(
    chart: Chart, x: Float[Array, "*x"], d: Float[Array, "*x"]
) -> Float[Array, ""]:
    """The part of a step that stays in the domain, by the construction of the module.

    Args:
        chart: the chart.
        x: coordinates inside the domain.
        d: the step, shaped like x.

    Returns:
        f with 0 < f ≤ 1, shape (), of the type of x.
    """
    start = chart.margins(x)
    if start.size == 0:
        return jnp.ones((), x.dtype)

    def kept(t):
        margins = chart.margins(x + t * d)
        good = jnp.all(margins > 0) & jnp.all(jnp.isfinite(margins))
        ratios = start / jnp.where(margins > 0, margins, 1)
        return jnp.where(good, start.size / jnp.sum(ratios), -1)

    longest = jnp.log(jnp.asarray(1 / STRAIGHT, x.dtype))
    shortened = ~(kept(jnp.exp(longest)) >= KEPT)
    log_t = bracketed_root(
        lambda s: jnp.where(shortened, kept(jnp.exp(s)) - KEPT, longest - s),
        jnp.asarray(_SMALLEST, x.dtype),
        longest,
    )
    u = jnp.exp(-log_t)
    beyond = jnp.maximum(u - STRAIGHT, 0) / (1 - STRAIGHT)
    saturated = STRAIGHT + (1 - STRAIGHT) * jnp.tanh(beyond)
    return jnp.where(shortened, saturated / u, 1)


def unconstrained(chart: Chart, x: Array) -> bool:
    """Whether every array of a shape is a point of a chart.

    Args:
        chart: the chart.
        x: an array of that shape; its values are not read.

    Returns:
        True where the chart has no margins.
    """
    return jax.eval_shape(chart.margins, x).size == 0

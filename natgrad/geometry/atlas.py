"""Domains and source charts of the library's families, one function each.

A new family is one function here and one line of the table in `charts`. Margins that
are differences are taken a few rounding errors smaller than they are, still concave, so
that a margin computed as positive is positive.
"""

from __future__ import annotations

import jax.numpy as jnp

from natgrad.families import Bernoulli, Categorical, Exponential, Gamma, Normal, Poisson
from natgrad.geometry.coordinates import Atlas, Chart, whole_space
from natgrad.typing import Array


def flat(x: Array) -> Array:
    """One axis."""
    return x.ravel()


def first(x: Array) -> Array:
    """The first entry of the last axis."""
    return x[..., 0]


def second(x: Array) -> Array:
    """The second entry of the last axis."""
    return x[..., 1]


def pair(one: Array, two: Array) -> Array:
    """Both in a last axis."""
    return jnp.stack([one, two], axis=-1)


def above(terms: int, x: Array) -> float:
    """One, and what the rounding of so many terms may add."""
    return 1 + 16 * terms * float(jnp.finfo(x.dtype).eps)


def bernoulli_atlas(family: Bernoulli) -> Atlas:
    """The probability."""
    probability = Chart(
        "probability",
        family.natural,
        family.mean,
        in_unit_interval,
        lambda p: p,
    )
    return Atlas(whole_space, in_unit_interval, (probability,))


def in_unit_interval(p: Array) -> Array:
    """Margins of 0 < p < 1."""
    return jnp.concatenate([p.ravel(), (1 - p).ravel()])


def categorical_atlas(family: Categorical) -> Atlas:
    """The C logits, and the C probabilities, are one too many: see the gauge."""
    log_odds = Chart(
        "log odds",
        lambda x: jnp.concatenate([x, jnp.zeros_like(x[..., :1])], axis=-1),
        lambda eta: eta[..., :-1] - eta[..., -1:],
    )
    probability = Chart(
        "probability",
        lambda p: family.natural(_with_last(p)),
        lambda eta: family.mean(eta)[..., :-1],
        lambda p: jnp.concatenate(
            [p.ravel(), (1 - above(p.shape[-1], p) * jnp.sum(p, -1)).ravel()]
        ),
        _with_last,
    )
    constants = lambda v: jnp.broadcast_to(jnp.mean(v, -1, keepdims=True), v.shape)
    return Atlas(whole_space, flat, (log_odds, probability), constants)


def _with_last(p: Array) -> Array:
    return jnp.concatenate([p, 1 - jnp.sum(p, -1, keepdims=True)], axis=-1)


def poisson_atlas(family: Poisson) -> Atlas:
    """The rate."""
    rate = Chart("rate", family.natural, family.mean, flat, lambda rate: rate)
    return Atlas(whole_space, flat, (rate,))


def exponential_atlas(family: Exponential) -> Atlas:
    """The rate and its logarithm."""
    del family
    rate = Chart("rate", lambda r: -r, lambda eta: -eta, flat, lambda r: 1 / r)
    log_rate = Chart(
        "log rate",
        lambda x: -jnp.exp(x),
        lambda eta: jnp.log(-eta),
        to_mean=lambda x: jnp.exp(-x),
    )
    return Atlas(lambda eta: (-eta).ravel(), flat, (rate, log_rate))


def normal_atlas(family: Normal) -> Atlas:
    """Of the normal law, and of others with its parameters."""
    del family

    def chart(name, variance, from_variance, margins):
        def to_natural(x):
            v = variance(second(x))
            return pair(first(x) / v, -0.5 / v)

        def from_natural(eta):
            v = -0.5 / second(eta)
            return pair(first(eta) * v, from_variance(v))

        def to_mean(x):
            m = first(x)
            return pair(m, m**2 + variance(second(x)))

        return Chart(name, to_natural, from_natural, margins, to_mean)

    positive_second = lambda x: second(x).ravel()
    return Atlas(
        lambda eta: -second(eta).ravel(),
        lambda mu: (second(mu) - above(1, mu) * first(mu) ** 2).ravel(),
        (
            chart("mean/sd", lambda s: s**2, jnp.sqrt, positive_second),
            chart("mean/variance", lambda v: v, lambda v: v, positive_second),
            chart(
                "mean/log sd",
                lambda r: jnp.exp(2 * r),
                lambda v: 0.5 * jnp.log(v),
                whole_space,
            ),
        ),
    )


def gamma_atlas(family: Gamma) -> Atlas:
    """Shape and rate, their logarithms, and shape and mean."""
    del family
    shape_rate = Chart(
        "shape/rate",
        lambda x: pair(first(x) - 1, -second(x)),
        lambda eta: pair(first(eta) + 1, -second(eta)),
        flat,
    )
    logs = Chart(
        "log shape/log rate",
        lambda x: shape_rate.to_natural(jnp.exp(x)),
        lambda eta: jnp.log(shape_rate.from_natural(eta)),
    )
    shape_mean = Chart(
        "shape/mean",
        lambda x: pair(first(x) - 1, -first(x) / second(x)),
        lambda eta: pair(first(eta) + 1, -(first(eta) + 1) / second(eta)),
        flat,
    )
    return Atlas(
        lambda eta: shape_rate.from_natural(eta).ravel(),
        _gamma_means,
        (shape_rate, logs, shape_mean),
    )


def _gamma_means(mu: Array) -> Array:
    """μ₂ > 0 and log μ₂ > μ₁, by Jensen's inequality."""
    mean_log, mean = first(mu), second(mu)
    rounding = (above(2, mu) - 1) * jnp.sqrt(1 + mean_log**2)
    return jnp.concatenate(
        [mean.ravel(), (jnp.log(mean) - mean_log - rounding).ravel()]
    )

"""Poisson law of a count, parametrised by its log rate.

A(η) = e^η,   T(y) = y,   h(y) = −log y!,   mean λ = e^η,   F_η = λ,
KL(η ‖ η') = λ (e^d − 1 − d)  with  d = η' − η.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.counts import expectation_of_log_gamma
from natgrad.families.numerics.remainders import (
    bounded_expm1,
    expm1_remainder,
    poisson_deviance,
)
from natgrad.families.numerics.special import log_factorial_excess
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Poisson(ExponentialFamily):
    """y ~ Poisson(e^z): z is the log rate, y a count, each entry a factor.

    y may be a fraction, such as a mean of counts; y! is then Γ(y + 1).
    """

    parameter_ndim: ClassVar[int] = 0

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ y z − e^z − log y!, less what cancels."""
        y = jnp.asarray(y, z.dtype)
        return -jnp.sum(poisson_deviance(y, z) + log_factorial_excess(y))

    def log_normalizer(self, eta: Array) -> Array:
        """Σ e^η."""
        return jnp.sum(jnp.exp(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y."""
        return jnp.asarray(y)

    def log_base_measure(self, y: Array) -> Array:
        """h(y) = −Σ log y!."""
        return -jnp.sum(jax.scipy.special.gammaln(y + 1.0))

    def mean(self, eta: Array) -> Array:
        """The rate e^η."""
        return jnp.exp(eta)

    def natural(self, mu: Array) -> Array:
        """The log rate; NaN where μ is negative, −∞ where it is 0."""
        return jnp.log(mu)

    def expected_log_base_measure(self, eta: Array) -> Array:
        """−Σ E[log y!], from the generating function E[x^y] = e^{−λ(1 − x)}."""
        return -jnp.sum(_expected_log_factorial(jnp.exp(eta)))

    def entropy(self, eta: Array) -> Array:
        """Σ λ − λ log λ + E[log y!], or its asymptotic series where λ is large."""
        large = eta > -0.2 * jnp.log(jnp.finfo(eta.dtype).eps)
        small = jnp.where(large, 0.0, eta)
        x = jnp.exp(-jnp.where(large, eta, 1.0))
        series = x * (1 / 12 + x * (1 / 24 + x * (19 / 360 + x * (9 / 80))))
        asymptotic = 0.5 * (1 + math.log(2 * math.pi) + eta) - series
        rate = jnp.exp(small)
        direct = rate - rate * small + _expected_log_factorial(rate)
        return jnp.sum(jnp.where(large, asymptotic, direct))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ λ (e^d − 1 − d), or e^z2 − λ (1 + d) where e^d could overflow."""
        return jnp.sum(_divergence(z, z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """λ ± √λ with equal weights, which are not counts.

        They have the mean and variance of the law, and the score y − λ is affine in y.
        """
        rate, deviation = jnp.exp(z), jnp.exp(z / 2)
        ys = jnp.stack([rate - deviation, rate + deviation])
        return ys, jnp.full(2, 0.5, z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        """A count for each factor, an integer array shaped like z."""
        return jax.random.poisson(key, jnp.exp(z)).astype(jnp.int32)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite and at least 0: a count, or a mean of counts."""
        del z
        return (y >= 0) & jnp.isfinite(y)


def _expected_log_factorial(rate: Array) -> Array:
    return expectation_of_log_gamma(
        lambda t, x: rate * jnp.exp(-t) + jnp.expm1(-rate * x) / jnp.expm1(t),
        rate.dtype,
    )


@jax.custom_jvp
def _divergence(z: Array, z2: Array) -> Array:
    """KL, elementwise."""
    d = z2 - z
    near = d < 10
    close = jnp.exp(z) * expm1_remainder(jnp.where(near, d, 0.0))
    step = jnp.where(near, 10.0, d)
    far = jnp.exp(z2) * (1 - (1 + step) * jnp.exp(-step))
    return jnp.where(d == 0, 0.0, jnp.where(near, close, far))


@_divergence.defjvp
def _divergence_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """−λ d dz + (λ2 − λ) dz2."""
    (z, z2), (dz, dz2) = primals, tangents
    d = z2 - z
    gap = jnp.exp(jnp.maximum(z, z2)) * bounded_expm1(d)
    return _divergence(z, z2), gap * dz2 - jnp.exp(z) * d * dz

"""Geometric law of the failures before a success, parametrised by η = log(1 − p).

A(η) = −log(1 − e^η),   T(y) = y,   mean μ = (1 − p)/p = 1/(e^−η − 1),
F_η = μ (1 + μ),   and with d = η' − η and x = −μ (e^d − 1)

    KL(η ‖ η') = (x − log(1 + x)) + μ (e^d − 1 − d).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import inside
from natgrad.families.numerics.remainders import (
    bounded_expm1,
    expm1_remainder,
    log1p_remainder,
)
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Geometric(ExponentialFamily):
    """p(y | z) = (1 − e^z) e^{z y}, y = 0, 1, …: z is log(1 − p) < 0, p of a success.

    Each entry of z is a factor. For the number of trials, failures and success, add 1.
    y may be a fraction, such as a mean of counts.
    """

    parameter_ndim: ClassVar[int] = 0
    domain: ClassVar[str] = "z below 0, as -softplus(output)"

    def log_normalizer(self, eta: Array) -> Array:
        """−Σ log(1 − e^η)."""
        return jnp.sum(geometric_log_normalizer(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y."""
        return jnp.asarray(y)

    def mean(self, eta: Array) -> Array:
        """The expected count 1/(e^−η − 1)."""
        return geometric_mean(eta)

    def natural(self, mu: Array) -> Array:
        """log(μ/(1 + μ)); NaN where μ is negative, −∞ where it is 0."""
        return inside(mu >= 0, -jnp.log1p(1 / mu))

    def entropy(self, eta: Array) -> Array:
        """Σ A(η) − η μ."""
        return jnp.sum(geometric_log_normalizer(eta) - eta * self.mean(eta))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ (x − log(1 + x)) + μ (e^d − 1 − d), x = −μ (e^d − 1), d = z2 − z."""
        return jnp.sum(geometric_divergence(z, z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """μ ± √(μ + μ²) with equal weights, which are not counts.

        They have the mean and variance of the law, and the score y − μ is affine in y.
        """
        mean = self.mean(z)
        deviation = jnp.sqrt(mean * (1 + mean))
        return jnp.stack([mean - deviation, mean + deviation]), jnp.full(
            2, 0.5, z.dtype
        )

    def sample(self, key: Key, z: Array) -> Array:
        """A count for each factor, an integer array shaped like z."""
        draw = jnp.floor(jax.random.exponential(key, z.shape, z.dtype) / -z)
        return draw.astype(jnp.int32)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite and at least 0: a count, or a mean of counts."""
        del z
        return (y >= 0) & jnp.isfinite(y)


def geometric_log_normalizer(eta: Array) -> Array:
    """−log(1 − e^η), elementwise for η < 0; NaN elsewhere."""
    near = eta > -0.7
    inside_near = jnp.log(-jnp.expm1(jnp.where(near, eta, -0.7)))
    return -jnp.where(near, inside_near, jnp.log1p(-jnp.exp(jnp.minimum(eta, -0.7))))


@jax.custom_jvp
def geometric_mean(eta: Array) -> Array:
    """e^η/(1 − e^η), elementwise."""
    return jnp.exp(eta) / -jnp.expm1(eta)


geometric_mean.defjvps(lambda d_eta, mean, eta: mean * (d_eta * (-1 / jnp.expm1(eta))))


@jax.custom_jvp
def geometric_divergence(z: Array, z2: Array) -> Array:
    """KL of the law with parameter z from that with z2, elementwise."""
    d, mean = z2 - z, geometric_mean(z)
    near = (d < 10) & (jnp.expm1(z2) / jnp.expm1(z) > 0.5)
    step = jnp.where(near, d, 0.0)
    close = log1p_remainder(-mean * jnp.expm1(step)) + mean * expm1_remainder(step)
    gap = geometric_log_normalizer(z2) - geometric_log_normalizer(z)
    return jnp.where(near, close, gap - mean * d)


@geometric_divergence.defjvp
def _geometric_divergence_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """−μ (1 + μ) d dz + (μ2 − μ) dz2."""
    (z, z2), (dz, dz2) = primals, tangents
    d, mean = z2 - z, geometric_mean(z)
    inverse, inverse2 = -1 / jnp.expm1(z), -1 / jnp.expm1(z2)
    gap = jnp.exp(jnp.maximum(z, z2)) * bounded_expm1(d)
    value = geometric_divergence(z, z2)
    return value, gap * inverse * inverse2 * dz2 - mean * (d * inverse) * dz

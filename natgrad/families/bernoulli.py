"""Bernoulli law of a binary label, parametrised by its logit.

A(η) = log(1 + e^η),   T(y) = y,   mean p = σ(η),   F_η = p(1 − p),
KL(p ‖ q) = log(1 − p + p e^d) − p d  with  d = η_q − η_p.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import inside
from natgrad.families.numerics.remainders import bounded_expm1, expm1_series, logistic
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Bernoulli(ExponentialFamily):
    """p(y = 1 | z) = σ(z): z is the logit, y is 0 or 1, each entry a factor.

    y may lie between, as grey pixels do: then `log_prob` is y z − log(1 + e^z), minus
    the cross-entropy of a bit that is 1 with probability y.
    """

    parameter_ndim: ClassVar[int] = 0

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log(1 + e^η)."""
        return jnp.sum(jax.nn.softplus(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y."""
        return jnp.asarray(y)

    def mean(self, eta: Array) -> Array:
        """The probability σ(η)."""
        return logistic(eta)

    def natural(self, mu: Array) -> Array:
        """The logit log(μ / (1 − μ)); NaN outside [0, 1], ±∞ at its ends."""
        return jnp.log(mu) - jnp.log1p(-mu)

    def mean_complement(self, eta: Array) -> Array:
        """1 − μ, which keeps its accuracy where μ rounds to 1."""
        return logistic(-eta)

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """The logit log(μ / (1 − μ)) of both; NaN where one is negative."""
        return inside((mu >= 0) & (complement >= 0), jnp.log(mu) - jnp.log(complement))

    def entropy(self, eta: Array) -> Array:
        """−Σ p log p + (1 − p) log(1 − p)."""
        return jnp.sum(binary_entropy(eta))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ log((1 − p) e^{−p d} + p e^{(1 − p) d}) with d = z2 − z."""
        return jnp.sum(binary_divergence(z, z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """Both labels, with their probabilities."""
        ys = jnp.array([0, 1])
        return ys, jnp.stack([logistic(-z), logistic(z)])

    def sample(self, key: Key, z: Array) -> Array:
        """0 or 1, an integer array shaped like z."""
        return jax.random.bernoulli(key, self.mean(z)).astype(jnp.int32)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y lies in [0, 1]."""
        del z
        return (y >= 0) & (y <= 1)


def binary_entropy(z: Array) -> Array:
    """−p log p − (1 − p) log(1 − p) with p = σ(z), elementwise."""
    return logistic(z) * jax.nn.softplus(-z) + logistic(-z) * jax.nn.softplus(z)


@jax.custom_jvp
def binary_divergence(z: Array, z2: Array) -> Array:
    """KL of the law with logit z from that with logit z2, elementwise."""
    # Mirrored, so that a <= 0 and p <= 1/2: then no term of the far form cancels.
    a, b = -jnp.abs(z), jnp.where(z > 0, -z2, z2)
    p, q, d = logistic(a), logistic(-a), b - a
    near = jnp.abs(d) < 1
    small = jnp.where(near, d, 0.0)
    close = jnp.log1p(q * expm1_series(-p * small) + p * expm1_series(q * small))
    rise = jnp.where(b > 0, q * b + p * a, -p * d)
    far = rise + jnp.log1p(jnp.exp(-jnp.abs(b))) - jnp.log1p(jnp.exp(a))
    return jnp.where(near, close, far)


@binary_divergence.defjvp
def _binary_divergence_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """−p q d dz + (p2 − p) dz2, where p2 − p = p2 q (1 − e^−d) = p q2 (e^d − 1)."""
    (z, z2), (dz, dz2) = primals, tangents
    p, q, d = logistic(z), logistic(-z), z2 - z
    larger = jnp.where(d > 0, logistic(z2) * q, logistic(-z2) * p)
    gap = larger * bounded_expm1(d)
    return binary_divergence(z, z2), gap * dz2 - p * q * d * dz

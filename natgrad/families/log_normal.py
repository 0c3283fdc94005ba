"""Log-normal law: log y ~ N(m, v), in the natural parameters η = (m/v, −1/(2v)).

    T(y) = (log y, log² y),   h(y) = −log y;   A, mean, F and KL are those of `Normal`,

since y -> log y is a bijection of the sample space.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.normal import Normal
from natgrad.typing import Array, Key

_NORMAL = Normal()


@dataclasses.dataclass(frozen=True)
class LogNormal(ExponentialFamily):
    """y = e^x with x ~ N(m, v): the last axis of z holds (m/v, −1/(2v))."""

    parameter_ndim: ClassVar[int] = 1

    def log_prob(self, z: Array, y: Array) -> Array:
        """That of log y, and −Σ log y."""
        x = jnp.log(jnp.asarray(y, z.dtype))
        return _NORMAL.log_prob(z, x) - jnp.sum(x)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ −η₁²/(4η₂) − log(−2η₂)/2 + log(2π)/2."""
        return _NORMAL.log_normalizer(eta)

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (log y, log² y)."""
        return _NORMAL.sufficient_statistics(jnp.log(y))

    def log_base_measure(self, y: Array) -> Array:
        """h(y) = −Σ log y."""
        return -jnp.sum(jnp.log(y))

    def expected_log_base_measure(self, eta: Array) -> Array:
        """−Σ m."""
        return -jnp.sum(self.mean(eta)[..., 0])

    def mean(self, eta: Array) -> Array:
        """The first two moments of log y, (m, m² + v)."""
        return _NORMAL.mean(eta)

    def natural(self, mu: Array) -> Array:
        """(m/v, −1/(2v)) with v = μ₂ − μ₁²; NaN unless v > 0 beyond rounding."""
        return _NORMAL.natural(mu)

    def mean_complement(self, eta: Array) -> Array:
        """The variance v = μ₂ − μ₁² of log y, where that cancels."""
        return _NORMAL.mean_complement(eta)

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(m/v, −1/(2v)) of the mean μ₁ and the variance v; NaN unless v > 0."""
        return _NORMAL.natural_from_complement(mu, complement)

    def entropy(self, eta: Array) -> Array:
        """Σ log(2πe v)/2 + m."""
        return _NORMAL.entropy(eta) - self.expected_log_base_measure(eta)

    def kl(self, z: Array, z2: Array) -> Array:
        """That of the normal laws of log y."""
        return _NORMAL.kl(z, z2)

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """e^x at the normal law's three nodes x."""
        xs, weights = _NORMAL.nodes(z)
        return jnp.exp(xs), weights

    def sample(self, key: Key, z: Array) -> Array:
        """A positive number for each factor."""
        limits = jnp.finfo(z.dtype)
        draw = jnp.exp(_NORMAL.sample(key, z))
        return jnp.clip(draw, limits.tiny, limits.max)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is positive and finite."""
        del z
        return (y > 0) & jnp.isfinite(y)

"""Normal law parametrised by its mean m and the logarithm ρ of its scale.

log p(y | m, ρ) = −ε²/2 − ρ − log(2π)/2  with  ε = (y − m) e^−ρ,
score = (ε e^−ρ, ε² − 1),   F = diag(e^−2ρ, 2),
KL = (e^t − 1 − t)/2 + (m − m')² e^−2ρ'/2  with  t = 2(ρ − ρ').
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.families.numerics.checks import diagonal, split_pair
from natgrad.families.numerics.remainders import expm1_remainder
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class NormalMeanLogScale(Family):
    """y ~ N(m, e^{2ρ}): the last axis of z holds (m, ρ)."""

    parameter_ndim: ClassVar[int] = 1

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ −ε²/2 − ρ − log(2π)/2."""
        mean, log_scale = _split(z)
        residual = (jnp.asarray(y, z.dtype) - mean) * jnp.exp(-log_scale)
        return jnp.sum(-0.5 * residual**2 - log_scale - 0.5 * math.log(2 * math.pi))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ (e^t − 1 − t)/2 + (m − m2)² e^−2ρ2/2."""
        (mean, log_scale), (mean2, log_scale2) = _split(z), _split(z2)
        distance = (mean - mean2) * jnp.exp(-log_scale2)
        spread = expm1_remainder(2 * (log_scale - log_scale2))
        return 0.5 * jnp.sum(spread + distance**2)

    def score(self, z: Array, y: Array) -> Array:
        """(ε e^−ρ, ε² − 1) in the last axis."""
        mean, log_scale = _split(z)
        residual = (jnp.asarray(y, z.dtype) - mean) * jnp.exp(-log_scale)
        return jnp.stack([residual * jnp.exp(-log_scale), residual**2 - 1], axis=-1)

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """The three Gauss-Hermite points m, m ± √3 e^ρ: exact to degree 5 in ε."""
        mean, log_scale = _split(z)
        residuals = jnp.array([-math.sqrt(3), 0, math.sqrt(3)], z.dtype)
        weights = jnp.array([1 / 6, 2 / 3, 1 / 6], z.dtype)
        return mean + jnp.exp(log_scale) * residuals, weights

    def fisher(self, z: Array) -> Array:
        """diag(e^−2ρ, 2), of shape z.shape * 2."""
        return diagonal(_information(z))

    def fisher_product(self, z: Array, v: Array) -> Array:
        """diag(e^−2ρ, 2) v."""
        return _information(z) * v

    def sample(self, key: Key, z: Array) -> Array:
        """A draw m + e^ρ ε with ε standard normal, of shape z.shape[:-1]."""
        mean, log_scale = _split(z)
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, z.dtype)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite."""
        del z
        return jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("NormalMeanLogScale", "(mean, log scale)", z)


def _information(z: Array) -> Array:
    log_scale = _split(z)[1]
    return jnp.stack([jnp.exp(-2 * log_scale), jnp.full_like(log_scale, 2)], axis=-1)

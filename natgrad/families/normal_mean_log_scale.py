"""Normal law parametrised by its mean m and the logarithm ρ of its scale.

log p(y | m, ρ) = −ε²/2 − ρ − log(2π)/2  with  ε = (y − m) e^−ρ,
score = (ε e^−ρ, ε² − 1),   F = diag(e^−2ρ, 2),
KL = (e^t − 1 − t)/2 + (m − m')² e^−2ρ'/2  with  t = 2(ρ − ρ').
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from natgrad.families.location_scale import LocationScale
from natgrad.families.numerics.remainders import expm1_remainder
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class NormalMeanLogScale(LocationScale):
    """y ~ N(m, e^{2ρ}): the last axis of z holds (m, ρ)."""

    def standard_log_prob(self, residual: Array) -> Array:
        """−ε²/2 − log(2π)/2."""
        return -0.5 * residual**2 - 0.5 * math.log(2 * math.pi)

    def standard_slopes(self, residual: Array) -> tuple[Array, Array]:
        """ε and ε²."""
        return residual, residual**2

    def standard_information(self, dtype: jnp.dtype) -> tuple[float, float]:
        """1 and 2."""
        del dtype
        return 1.0, 2.0

    def standard_nodes(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """The three Gauss-Hermite points 0, ±√3: exact to degree 5 in ε."""
        residuals = jnp.array([-math.sqrt(3), 0, math.sqrt(3)], dtype)
        return residuals, jnp.array([1 / 6, 2 / 3, 1 / 6], dtype)

    def standard_sample(
        self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype
    ) -> Array:
        """By `jax.random.normal`."""
        return jax.random.normal(key, shape, dtype)

    def divergence(self, gap: Array, log_scale: Array, log_scale2: Array) -> Array:
        """(e^t − 1 − t)/2 + (m − m2)² e^−2ρ2/2."""
        spread = expm1_remainder(2 * (log_scale - log_scale2))
        return 0.5 * (spread + (gap * jnp.exp(-log_scale2)) ** 2)

"""Cauchy law with location m and log scale ρ: Student's t law with ν = 1.

    log p(y | m, ρ) = −log π − ρ − log(1 + ε²),   ε = (y − m) e^−ρ,
    F = diag(e^−2ρ, 1)/2,
    KL = log(1 + sinh²(t/2) + (m − m')² e^{−ρ − ρ'}/4)   with t = ρ − ρ',

which is symmetric in the two laws.

Nodes. With ε = tan(θ/2), θ is uniform and the score is (e^−ρ sin θ, −cos θ): four equal
steps of θ are exact.

Source of the divergence: Chyzak & Nielsen, A closed-form formula for the Kullback-
Leibler divergence between Cauchy distributions (2019).
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from natgrad.families.location_scale import LocationScale
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Cauchy(LocationScale):
    """y = m + e^ρ ε, ε of the standard Cauchy law: the last axis of z holds (m, ρ)."""

    def standard_log_prob(self, residual: Array) -> Array:
        """−log π − log(1 + ε²)."""
        return -math.log(math.pi) - jnp.log1p(residual**2)

    def standard_slopes(self, residual: Array) -> tuple[Array, Array]:
        """2 ε w and 2 (1 − w) with w = 1/(1 + ε²)."""
        w = 1 / (1 + residual**2)
        return 2 * residual * w, 2 - 2 * w

    def standard_information(self, dtype: jnp.dtype) -> tuple[float, float]:
        """1/2 and 1/2."""
        del dtype
        return 0.5, 0.5

    def standard_nodes(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Four points √2 ± 1 and −√2 ± 1 with equal weights."""
        root = math.sqrt(2)
        residuals = jnp.array([-root - 1, 1 - root, root - 1, root + 1], dtype)
        return residuals, jnp.full(4, 0.25, dtype)

    def standard_sample(
        self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype
    ) -> Array:
        """By `jax.random.cauchy`."""
        return jax.random.cauchy(key, shape, dtype)

    def divergence(self, gap: Array, log_scale: Array, log_scale2: Array) -> Array:
        """log(1 + sinh²(t/2) + (m − m2)² e^{−ρ − ρ2}/4)."""
        half = 0.5 * (log_scale - log_scale2)
        distance = 0.5 * gap * jnp.exp(-0.5 * (log_scale + log_scale2))
        near = (jnp.abs(half) < 1) & (jnp.abs(distance) < 1)
        t, d = jnp.where(near, half, 0.0), jnp.where(near, distance, 0.0)
        close = jnp.log1p(jnp.sinh(t) ** 2 + d**2)
        # log(cosh² t + distance²), of logarithms.
        some = jnp.where(gap == 0, 1.0, jnp.abs(gap) / 2)
        apart = jnp.where(gap == 0, -jnp.inf, 2 * jnp.log(some))
        apart = apart - log_scale - log_scale2
        log_cosh = jnp.logaddexp(half, -half) - math.log(2)
        return jnp.where(near, close, jnp.logaddexp(2 * log_cosh, apart))

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
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.families.numerics.checks import diagonal, split_pair
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Cauchy(Family):
    """y = m + e^ρ ε, ε of the standard Cauchy law: the last axis of z holds (m, ρ)."""

    parameter_ndim: ClassVar[int] = 1

    def log_prob(self, z: Array, y: Array) -> Array:
        """−Σ log π + ρ + log(1 + ε²)."""
        location, log_scale = _split(z)
        residual = (jnp.asarray(y, z.dtype) - location) * jnp.exp(-log_scale)
        return -jnp.sum(math.log(math.pi) + log_scale + jnp.log1p(residual**2))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ log(1 + sinh²(t/2) + (m − m2)² e^{−ρ − ρ2}/4)."""
        (location, log_scale), (location2, log_scale2) = _split(z), _split(z2)
        gap, t = location - location2, 0.5 * (log_scale - log_scale2)
        distance = 0.5 * gap * jnp.exp(-0.5 * (log_scale + log_scale2))
        near = (jnp.abs(t) < 1) & (jnp.abs(distance) < 1)
        within = lambda x: jnp.where(near, x, 0.0)
        close = jnp.log1p(jnp.sinh(within(t)) ** 2 + within(distance) ** 2)
        # log(cosh² t + distance²), of logarithms.
        some = jnp.where(gap == 0, 1.0, jnp.abs(gap) / 2)
        apart = jnp.where(gap == 0, -jnp.inf, 2 * jnp.log(some))
        apart = apart - log_scale - log_scale2
        log_cosh = jnp.logaddexp(t, -t) - math.log(2)
        return jnp.sum(jnp.where(near, close, jnp.logaddexp(2 * log_cosh, apart)))

    def score(self, z: Array, y: Array) -> Array:
        """(2 ε e^−ρ, ε² − 1)/(1 + ε²) in the last axis."""
        location, log_scale = _split(z)
        residual = (jnp.asarray(y, z.dtype) - location) * jnp.exp(-log_scale)
        w = 1 / (1 + residual**2)
        return jnp.stack([2 * residual * w * jnp.exp(-log_scale), 1 - 2 * w], axis=-1)

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """Four points m ± e^ρ (√2 ± 1) with equal weights."""
        location, log_scale = _split(z)
        root = math.sqrt(2)
        residuals = jnp.array([-root - 1, 1 - root, root - 1, root + 1], z.dtype)
        return location + jnp.exp(log_scale) * residuals, jnp.full(4, 0.25, z.dtype)

    def fisher(self, z: Array) -> Array:
        """diag(e^−2ρ, 1)/2, of shape z.shape * 2."""
        return diagonal(_information(z))

    def fisher_product(self, z: Array, v: Array) -> Array:
        """diag(e^−2ρ, 1) v/2."""
        return _information(z) * v

    def sample(self, key: Key, z: Array) -> Array:
        """A draw m + e^ρ ε, of shape z.shape[:-1]."""
        location, log_scale = _split(z)
        draw = jax.random.cauchy(key, location.shape, z.dtype)
        return location + jnp.exp(log_scale) * draw

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite."""
        del z
        return jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("Cauchy", "(location, log scale)", z)


def _information(z: Array) -> Array:
    log_scale = _split(z)[1]
    return 0.5 * jnp.stack([jnp.exp(-2 * log_scale), jnp.ones_like(log_scale)], axis=-1)

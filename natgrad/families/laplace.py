"""Laplace law with location m and log scale ρ, whose density has a kink at m.

    log p(y | m, ρ) = −|ε| − ρ − log 2,   ε = (y − m) e^−ρ,
    score = (sign(ε) e^−ρ, |ε| − 1),   F = E[s sᵀ] = diag(e^−2ρ, 1),
    KL = (e^t − 1 − t) + e^t (e^−δ − 1 + δ)   with t = ρ − ρ', δ = |m − m'| e^−ρ.

The Hessian of log p in m is 0 wherever it exists, so minus its expectation is not the
Fisher information: the second derivative is a point mass at y = m. The divergence is
twice differentiable, and its Hessian is F, but it has the kink −δ³/6: its third
derivative in m jumps at m' = m.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from natgrad.families.location_scale import LocationScale
from natgrad.families.numerics.remainders import expm1_remainder, scaled
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Laplace(LocationScale):
    """y = m + e^ρ ε, ε of the standard Laplace law: the last axis of z holds (m, ρ)."""

    def standard_log_prob(self, residual: Array) -> Array:
        """−|ε| − log 2."""
        return -jnp.abs(residual) - math.log(2)

    def standard_slopes(self, residual: Array) -> tuple[Array, Array]:
        """sign ε and |ε|."""
        return jnp.sign(residual), jnp.abs(residual)

    def standard_information(self, dtype: jnp.dtype) -> tuple[float, float]:
        """1 and 1."""
        del dtype
        return 1.0, 1.0

    def standard_nodes(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Four points: two of Gauss-Laguerre in |ε|, each with both signs."""
        root = math.sqrt(2)
        residuals = jnp.array([-2 - root, root - 2, 2 - root, 2 + root], dtype)
        weights = jnp.array([2 - root, 2 + root, 2 + root, 2 - root], dtype)
        return residuals, weights / 8

    def standard_sample(
        self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype
    ) -> Array:
        """By `jax.random.laplace`."""
        return jax.random.laplace(key, shape, dtype)

    def divergence(self, gap: Array, log_scale: Array, log_scale2: Array) -> Array:
        """(e^t − 1 − t) + e^t (e^−δ − 1 + δ)."""
        t, delta = log_scale - log_scale2, scaled(gap, log_scale)
        near = jnp.abs(delta) < 1
        close = expm1_remainder(t) + jnp.exp(t) * _two_sided(jnp.where(near, delta, 0))
        size = jnp.abs(jnp.where(near, 0.0, gap))
        far = jnp.exp(t - scaled(size, log_scale)) + scaled(size, log_scale2)
        return jnp.where(near, close, far - 1 - t)


@jax.custom_jvp
def _two_sided(x: Array) -> Array:
    """The remainder e^−|x| − 1 + |x|, whose second derivative is e^−|x|."""
    return expm1_remainder(-jnp.abs(x))


_two_sided.defjvps(lambda dx, _, x: _two_sided_slope(x) * dx)


@jax.custom_jvp
def _two_sided_slope(x: Array) -> Array:
    return -jnp.sign(x) * jnp.expm1(-jnp.abs(x))


_two_sided_slope.defjvps(lambda dx, _, x: jnp.exp(-jnp.abs(x)) * dx)

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
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.families.numerics.checks import diagonal, split_pair
from natgrad.families.numerics.remainders import expm1_remainder, scaled
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Laplace(Family):
    """y = m + e^ρ ε, ε of the standard Laplace law: the last axis of z holds (m, ρ)."""

    parameter_ndim: ClassVar[int] = 1

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ −|ε| − ρ − log 2."""
        location, log_scale = _split(z)
        residual = (jnp.asarray(y, z.dtype) - location) * jnp.exp(-log_scale)
        return -jnp.sum(jnp.abs(residual) + log_scale + math.log(2))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ (e^t − 1 − t) + e^t (e^−δ − 1 + δ)."""
        (location, log_scale), (location2, log_scale2) = _split(z), _split(z2)
        t, gap = log_scale - log_scale2, location - location2
        delta = scaled(gap, log_scale)
        near = jnp.abs(delta) < 1
        close = expm1_remainder(t) + jnp.exp(t) * _two_sided(jnp.where(near, delta, 0))
        size = jnp.abs(jnp.where(near, 0.0, gap))
        far = jnp.exp(t - scaled(size, log_scale)) + scaled(size, log_scale2)
        return jnp.sum(jnp.where(near, close, far - 1 - t))

    def score(self, z: Array, y: Array) -> Array:
        """(sign(ε) e^−ρ, |ε| − 1) in the last axis."""
        location, log_scale = _split(z)
        residual = (jnp.asarray(y, z.dtype) - location) * jnp.exp(-log_scale)
        of_location = jnp.sign(residual) * jnp.exp(-log_scale)
        return jnp.stack([of_location, jnp.abs(residual) - 1], axis=-1)

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """Four points: two of Gauss-Laguerre in |ε|, each with both signs."""
        location, log_scale = _split(z)
        root = math.sqrt(2)
        distances = jnp.exp(log_scale) * jnp.array([2 - root, 2 + root], z.dtype)
        weights = jnp.array([2 + root, 2 - root], z.dtype) / 8
        ys = location + jnp.concatenate([-distances, distances])
        return ys, jnp.concatenate([weights, weights])

    def fisher(self, z: Array) -> Array:
        """E[s sᵀ] = diag(e^−2ρ, 1), of shape z.shape * 2."""
        return diagonal(_information(z))

    def fisher_product(self, z: Array, v: Array) -> Array:
        """diag(e^−2ρ, 1) v."""
        return _information(z) * v

    def sample(self, key: Key, z: Array) -> Array:
        """A draw m + e^ρ ε, of shape z.shape[:-1]."""
        location, log_scale = _split(z)
        draw = jax.random.laplace(key, location.shape, z.dtype)
        return location + jnp.exp(log_scale) * draw

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite."""
        del z
        return jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("Laplace", "(location, log scale)", z)


def _information(z: Array) -> Array:
    log_scale = _split(z)[1]
    return jnp.stack([jnp.exp(-2 * log_scale), jnp.ones_like(log_scale)], axis=-1)


@jax.custom_jvp
def _two_sided(x: Array) -> Array:
    """The remainder e^−|x| − 1 + |x|, whose second derivative is e^−|x|."""
    return expm1_remainder(-jnp.abs(x))


_two_sided.defjvps(lambda dx, _, x: _two_sided_slope(x) * dx)


@jax.custom_jvp
def _two_sided_slope(x: Array) -> Array:
    return -jnp.sign(x) * jnp.expm1(-jnp.abs(x))


_two_sided_slope.defjvps(lambda dx, _, x: jnp.exp(-jnp.abs(x)) * dx)

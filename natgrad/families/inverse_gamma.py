"""Inverse gamma law with shape a and scale b, in η = (−a − 1, −b): 1/y is Gamma(a, b).

    A(η) = log Γ(a) − a log b,   T(y) = (log y, 1/y),
    mean μ = (log b − ψ(a), a/b),   F_η = [[ψ'(a), −1/b], [−1/b, a/b²]].

Divergence and nodes are those of the gamma law, since y -> 1/y is a bijection.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from natgrad.families.base import ExponentialFamily
from natgrad.families.gamma import (
    gamma_divergence,
    gamma_entropy,
    gamma_log_prob,
    gamma_slope,
    log_gamma_nodes,
    near_shapes,
)
from natgrad.families.numerics.checks import inside, resolved, split_pair
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.remainders import log_quotient, quotient
from natgrad.families.numerics.special import (
    inverse_log_minus_digamma,
    log_minus_digamma,
)
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class InverseGamma(ExponentialFamily):
    """p(y) ∝ y^{−a − 1} e^{−b/y} for y > 0: the last axis of z holds (−a − 1, −b)."""

    parameter_ndim: ClassVar[int] = 1

    def log_prob(self, z: Array, y: Array) -> Array:
        """That of the gamma law of 1/y, and −Σ 2 log y."""
        y = jnp.asarray(y, z.dtype)
        inverse = gamma_log_prob(*_shape_and_scale(z), 1 / y)
        return jnp.sum(inverse - 2 * jnp.log(y))

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log Γ(a) − a log b."""
        shape, scale = _shape_and_scale(eta)
        return jnp.sum(gammaln(shape) - shape * jnp.log(scale))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (log y, 1/y)."""
        y = jnp.asarray(y)
        return jnp.stack([jnp.log(y), 1 / y], axis=-1)

    def mean(self, eta: Array) -> Array:
        """(log b − ψ(a), a/b)."""
        shape, scale = _shape_and_scale(eta)
        first = log_minus_digamma(shape) - log_quotient(scale, shape)
        return jnp.stack([first, quotient(shape, scale)], axis=-1)

    def score(self, z: Array, y: Array) -> Array:
        """(log y − μ₁, 1/y − μ₂)."""
        shape, scale = _shape_and_scale(z)
        inverse, mean = 1 / jnp.asarray(y, z.dtype), shape / scale
        of_log = -log_quotient(mean, inverse) - log_minus_digamma(shape)
        return jnp.stack([of_log, inverse - mean], axis=-1)

    def natural(self, mu: Array) -> Array:
        """(−a − 1, −b), where log a − ψ(a) = log μ₂ + μ₁ and b = a/μ₂.

        NaN unless log μ₂ > −μ₁ beyond rounding.
        """
        mean_log, mean_inverse = _split(mu)
        gap = resolved(jnp.log(mean_inverse) + mean_log, jnp.abs(mean_log))
        return self.natural_from_complement(mu, gap)

    def mean_complement(self, eta: Array) -> Array:
        """log μ₂ + μ₁ = log a − ψ(a), of shape eta.shape[:-1], where that cancels."""
        return log_minus_digamma(_shape_and_scale(eta)[0])

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(−a − 1, −b) of μ₂ and log μ₂ + μ₁; NaN unless both are positive."""
        mean_inverse = _split(mu)[1]
        shape = inside(mean_inverse > 0, inverse_log_minus_digamma(complement))
        return jnp.stack([-shape - 1, -shape / mean_inverse], axis=-1)

    def entropy(self, eta: Array) -> Array:
        """That of the gamma law of 1/y, and Σ 2 E[log y]."""
        shape, scale = _shape_and_scale(eta)
        mean_log = jnp.log(scale) - jnp.log(shape) + log_minus_digamma(shape)
        return jnp.sum(gamma_entropy(shape) - jnp.log(scale) + 2 * mean_log)

    def kl(self, z: Array, z2: Array) -> Array:
        """That of the gamma laws of 1/y."""

        def of_factors(z, z2):
            first, second = _split(z2 - z)
            laws = _shape_and_scale(z), _shape_and_scale(z2)
            return gamma_divergence(*laws, (-first, -second))

        def slope(z, z2):
            slopes = gamma_slope(_shape_and_scale(z), _shape_and_scale(z2))
            return -jnp.stack(slopes, axis=-1)

        near = near_shapes(_shape_and_scale(z), z2 - z)
        return jnp.sum(divergence(self, of_factors, z, z2, near, slope))

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """The inverses of the gamma law's 58 nodes, see `Gamma.nodes`."""
        log_inverses, weights = log_gamma_nodes(*_shape_and_scale(z))
        return jnp.exp(-log_inverses), weights

    def sample(self, key: Key, z: Array) -> Array:
        """A positive number for each factor, at most the largest finite one."""
        shape, scale = _shape_and_scale(z)
        draw = jnp.exp(jnp.log(scale) - jax.random.loggamma(key, shape, dtype=z.dtype))
        limits = jnp.finfo(z.dtype)
        return jnp.clip(draw, limits.tiny, limits.max)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is positive and finite."""
        del z
        return (y > 0) & jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("InverseGamma", "(−shape − 1, −scale)", z)


def _shape_and_scale(eta: Array) -> tuple[Array, Array]:
    first, second = _split(eta)
    return -first - 1, -second

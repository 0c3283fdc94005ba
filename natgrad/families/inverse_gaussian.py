"""Inverse Gaussian law with mean m and shape l, in η = (−l/(2m²), −l/2).

    A(η) = −2√(η₁η₂) − log(−2η₂)/2,   T(y) = (y, 1/y),   h(y) = −log(2π y³)/2,
    mean μ = (m, 1/m + 1/l),
    KL = (u − log(1 + u))/2 + l'(m − m')²/(2 m m'²)  with  u = l'/l − 1.

Nodes. l(y − m)²/(m² y) is χ² distributed with one degree of freedom, and for each of
its values y/m is one of x and 1/x with the probabilities 1/(1 + x) and x/(1 + x)
(Michael, Schucany & Haas 1976). Under these the products of scores are quadratic in the
χ² variable: the square of a four-point Gauss-Hermite rule is exact.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import aligned, inside, resolved, split_pair
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.remainders import quotient, ratio_remainder
from natgrad.typing import Array, Key

_ROOT6 = math.sqrt(6)
_LOG_S = np.arange(-80.0, 4.0, 0.3)
_SMALL = math.exp(-40)


@dataclasses.dataclass(frozen=True)
class InverseGaussian(ExponentialFamily):
    """y ~ IG(mean m, shape l): the last axis of z holds (−l/(2m²), −l/2)."""

    parameter_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "both entries of z below 0, as -softplus(output)"

    def log_prob(self, z: Array, y: Array) -> Array:
        """−Σ l (y − m)²/(2 m² y) − log(l/(2π y³))/2."""
        m, shape = _mean_and_shape(z)
        y = jnp.asarray(y, z.dtype)
        residual = (quotient(y, m) - 1) * jnp.sqrt(shape / y)
        scale = jnp.log(shape) - math.log(2 * math.pi) - 3 * jnp.log(y)
        return 0.5 * jnp.sum(scale - residual**2)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ −2√(η₁η₂) − log(−2η₂)/2."""
        first, second = _split(eta)
        root = jnp.sqrt(-first) * jnp.sqrt(-second)
        return jnp.sum(-2 * root - 0.5 * jnp.log(-2 * second))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (y, 1/y)."""
        y = jnp.asarray(y)
        return jnp.stack([y, 1 / y], axis=-1)

    def log_base_measure(self, y: Array) -> Array:
        """h(y) = −Σ log(2π y³)/2."""
        return -0.5 * jnp.sum(math.log(2 * math.pi) + 3 * jnp.log(y))

    def expected_log_base_measure(self, eta: Array) -> Array:
        """−Σ (log 2π + 3 E[log y])/2."""
        mean, shape = _mean_and_shape(eta)
        mean_log = jnp.log(mean) - _scaled_exponential_integral(2 * shape / mean)
        return -0.5 * jnp.sum(math.log(2 * math.pi) + 3 * mean_log)

    def mean(self, eta: Array) -> Array:
        """(m, 1/m + 1/l)."""
        first, second = _split(eta)
        rest = quotient(jnp.full_like(second, -0.5), second)
        inverse = _root_quotient(first, second)
        return jnp.stack([_root_quotient(second, first), inverse + rest], axis=-1)

    def natural(self, mu: Array) -> Array:
        """(−l/(2m²), −l/2) with m = μ₁ and 1/l = μ₂ − 1/μ₁.

        NaN unless μ₁ > 0 and μ₂ > 1/μ₁ beyond rounding.
        """
        mean, mean_inverse = _split(mu)
        gap = resolved(mean_inverse - 1 / mean, mean_inverse)
        return self.natural_from_complement(mu, gap)

    def mean_complement(self, eta: Array) -> Array:
        """μ₂ − 1/μ₁ = 1/l, of shape eta.shape[:-1], where that cancels."""
        return 1 / _mean_and_shape(eta)[1]

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(−l/(2m²), −l/2) of m = μ₁ and 1/l; NaN unless both are positive."""
        mean = _split(mu)[0]
        shape = inside((mean > 0) & (complement > 0), 1 / complement)
        return jnp.stack([-0.5 * shape / mean**2, -0.5 * shape], axis=-1)

    def entropy(self, eta: Array) -> Array:
        """(1 − log l)/2 − E[h]."""
        shape = _mean_and_shape(eta)[1]
        base = self.expected_log_base_measure(eta)
        return jnp.sum(0.5 * (1 - jnp.log(shape))) - base

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ (u − log(1 + u))/2 + l2 (m − m2)²/(2 m m2²) with u = l2/l − 1."""
        (first, second), (first2, second2) = _split(z), _split(z2)
        near = (jnp.abs(first2 - first) < -0.5 * first) & (
            jnp.abs(second2 - second) < -0.5 * second
        )
        return jnp.sum(divergence(self, _divergence, z, z2, near))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """Four points: m x and m/x for both values of the χ² variable."""
        m, shape = _mean_and_shape(z)
        chi_square = jnp.array([3 - _ROOT6, 3 + _ROOT6], z.dtype)
        weights = jnp.array([3 + _ROOT6, 3 - _ROOT6], z.dtype) / 6
        half = 0.5 * chi_square * m / shape
        x = 1 + half + jnp.sqrt(half * (2 + half))
        ys = m * jnp.concatenate([x, 1 / x])
        shares = jnp.concatenate([1 / (1 + x), x / (1 + x)])
        return ys, shares * jnp.concatenate([weights, weights])

    def sample(self, key: Key, z: Array) -> Array:
        """A positive number for each factor (Michael, Schucany & Haas 1976)."""
        m, shape = _mean_and_shape(z)
        key1, key2 = jax.random.split(key)
        half = 0.5 * jax.random.normal(key1, m.shape, z.dtype) ** 2 * m / shape
        x = 1 + half + jnp.sqrt(half * (2 + half))
        larger = jax.random.uniform(key2, m.shape, z.dtype) * (1 + x) < 1
        return jnp.maximum(m * jnp.where(larger, x, 1 / x), jnp.finfo(z.dtype).tiny)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is positive and finite."""
        del z
        return (y > 0) & jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("InverseGaussian", "(−shape/(2 mean²), −shape/2)", z)


def _mean_and_shape(eta: Array) -> tuple[Array, Array]:
    first, second = _split(eta)
    law = (first <= 0) & (second < 0)
    return inside(law, _root_quotient(second, first)), -2 * second


def _divergence(z: Array, z2: Array) -> Array:
    """KL of each factor."""
    (first, second), (first2, second2) = _split(z), _split(z2)
    (m, _), (m2, shape2) = _mean_and_shape(z), _mean_and_shape(z2)
    d1, d2 = first2 - first, second2 - second
    near = (jnp.abs(d1) < -0.5 * first) & (jnp.abs(d2) < -0.5 * second)
    # m²/m2² − 1, from differences of parameters where these are near.
    rises = quotient(jnp.where(near, d1, 0.0), first) - quotient(d2, second)
    squares = quotient(second, second2) * rises
    ratio = quotient(m, m2)
    distance = jnp.where(near, squares / (1 + ratio), ratio - 1)
    distance = distance * _root_quotient(shape2, m)
    return 0.5 * (ratio_remainder(second, second2, d2) + distance**2)


@jax.custom_jvp
def _root_quotient(x: Array, y: Array) -> Array:
    """√(x/y), elementwise for x and y of one sign."""
    return jnp.sqrt(jnp.abs(x)) * (1 / jnp.sqrt(jnp.abs(y)))


@_root_quotient.defjvp
def _root_quotient_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    value = _root_quotient(x, y)

    def share(x, dx):
        """value · dx/x, in the order in which less overflows."""
        large = jnp.abs(x) > 1
        part = jnp.where(large, 1 / x, value) * dx
        return part * jnp.where(large, value, 1 / x)

    return value, 0.5 * (share(x, dx) - share(y, dy))


def _scaled_exponential_integral(x: Array) -> Array:
    """e^x E₁(x) = ∫₀^∞ e^−s/(s + x) ds, by the trapezoidal rule in log s."""
    s = aligned(np.exp(_LOG_S), x[..., None])
    # Below e^−40 it is −log x − γ.
    small = x < _SMALL
    usual = jnp.where(small, _SMALL, x)[..., None]
    integral = 0.3 * jnp.sum(jnp.exp(-s) * s / (s + usual), axis=-1)
    return jnp.where(small, -jnp.log(x) - np.euler_gamma, integral)

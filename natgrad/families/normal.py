"""Normal law in its natural parameters η = (m/v, −1/(2v)).

A(η) = −η₁²/(4η₂) − log(−2η₂)/2 + log(2π)/2,   T(y) = (y, y²),
mean μ = (m, m² + v),   F_η = [[v, 2mv], [2mv, 2v² + 4m²v]],
KL(η ‖ η') = (u − log(1 + u))/2 + (m − m')²/(2v')  with  u = (η₂' − η₂)/η₂.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import inside, resolved, split_pair
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.remainders import quotient, ratio_remainder
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Normal(ExponentialFamily):
    """y ~ N(m, v): the last axis of z holds (m/v, −1/(2v)).

    For the outputs of a network `NormalMean` and `NormalMeanLogScale` are usually
    better: here the second coordinate must be negative.
    """

    parameter_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "z[..., 1] below 0; NormalMeanLogScale() takes any z"

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ −(y − m)²/(2v) − log(v)/2 − log(2π)/2."""
        first, second = _split(z)
        root = jnp.sqrt(-2 * second)
        residual = jnp.asarray(y, z.dtype) * root - quotient(first, root)
        constant = 0.5 * math.log(2 * math.pi)
        return jnp.sum(jnp.log(root) - 0.5 * residual**2 - constant)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ −η₁²/(4η₂) − log(−2η₂)/2 + log(2π)/2."""
        first, second = _split(eta)
        quadratic = -0.5 * first * quotient(first, 2 * second)
        return jnp.sum(
            quadratic - 0.5 * jnp.log(-2 * second) + 0.5 * math.log(2 * math.pi)
        )

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (y, y²)."""
        y = jnp.asarray(y)
        return jnp.stack([y, y**2], axis=-1)

    def mean(self, eta: Array) -> Array:
        """The first two moments (m, m² + v)."""
        m, v = _mean_and_variance(eta)
        return jnp.stack([m, m**2 + v], axis=-1)

    def natural(self, mu: Array) -> Array:
        """(m/v, −1/(2v)) with v = μ₂ − μ₁²; NaN unless v > 0 beyond rounding."""
        m, second_moment = _split(mu)
        v = resolved(second_moment - m**2, second_moment)
        return self.natural_from_complement(mu, v)

    def mean_complement(self, eta: Array) -> Array:
        """The variance v = μ₂ − μ₁², of shape eta.shape[:-1], where that cancels."""
        return _mean_and_variance(eta)[1]

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(m/v, −1/(2v)) of the mean μ₁ and the variance v; NaN unless v > 0."""
        m, v = _split(mu)[0], inside(complement > 0, complement)
        return jnp.stack([m / v, -0.5 / v], axis=-1)

    def entropy(self, eta: Array) -> Array:
        """Σ log(2πe v)/2."""
        v = _mean_and_variance(eta)[1]
        return 0.5 * jnp.sum(1 + math.log(2 * math.pi) + jnp.log(v))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ (u − log(1 + u))/2 + (m − m2)²/(2 v2)."""
        (_, a2), (_, b2) = _split(z), _split(z2)
        near = jnp.abs(b2 - a2) < -0.5 * a2
        return jnp.sum(divergence(self, _divergence, z, z2, near))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """The three Gauss-Hermite points m, m ± √(3v): exact to degree 5 in y."""
        m, v = _mean_and_variance(z)
        residuals = jnp.array([-math.sqrt(3), 0, math.sqrt(3)], z.dtype)
        weights = jnp.array([1 / 6, 2 / 3, 1 / 6], z.dtype)
        return m + jnp.sqrt(v) * residuals, weights

    def sample(self, key: Key, z: Array) -> Array:
        """A draw m + √v ε with ε standard normal, of shape z.shape[:-1]."""
        m, v = _mean_and_variance(z)
        return m + jnp.sqrt(v) * jax.random.normal(key, m.shape, z.dtype)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite."""
        del z
        return jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("Normal", "(mean/variance, −1/(2 variance))", z)


def _divergence(z: Array, z2: Array) -> Array:
    """KL of each factor."""
    (a1, a2), (b1, b2) = _split(z), _split(z2)
    m, root2 = _mean_and_variance(z)[0], jnp.sqrt(-2 * b2)
    # (m2 − m)/√v2, from differences of parameters where these are near.
    close = quotient(b1 - a1 + 2 * m * (b2 - a2), root2)
    apart = quotient(b1, root2) - m * root2
    distance = jnp.where(jnp.abs(b2 - a2) < -0.5 * a2, close, apart)
    return 0.5 * (ratio_remainder(a2, b2, b2 - a2) + distance**2)


def _mean_and_variance(eta: Array) -> tuple[Array, Array]:
    first, second = _split(eta)
    v = quotient(jnp.full_like(second, -0.5), second)
    return quotient(first, -2 * second), v

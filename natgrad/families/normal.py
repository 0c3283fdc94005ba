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
from natgrad.families.checks import inside, resolved, split_pair
from natgrad.families.remainders import ratio_remainder
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Normal(ExponentialFamily):
    """y ~ N(m, v): the last axis of z holds (m/v, −1/(2v)).

    For the outputs of a network `NormalMean` and `NormalMeanLogScale` are usually
    better: here the second coordinate must be negative.
    """

    parameter_ndim: ClassVar[int] = 1

    def log_normalizer(self, eta: Array) -> Array:
        """Σ −η₁²/(4η₂) − log(−2η₂)/2 + log(2π)/2."""
        first, second = _split(eta)
        quadratic = -(first**2) / (4 * second)
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
        (a1, a2), (b1, b2) = _split(z), _split(z2)
        spread = ratio_remainder(a2, b2, b2 - a2)
        distance = ((b1 - a1) * a2 - a1 * (b2 - a2)) / (2 * a2 * b2)
        return jnp.sum(0.5 * spread - b2 * distance**2)

    def nodes(self, z: Array) -> tuple[Array, Array]:
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


def _mean_and_variance(eta: Array) -> tuple[Array, Array]:
    first, second = _split(eta)
    v = -0.5 / second
    return first * v, v

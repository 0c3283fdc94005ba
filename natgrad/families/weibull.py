"""Weibull law with known shape k and scale s, parametrised by η = −s^−k.

    A(η) = −log(−η),   T(y) = y^k,   h(y) = log k + (k − 1) log y,
    mean μ = s^k,   F_η = 1/η²,

the exponential law of y^k.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from natgrad.families.base import ExponentialFamily
from natgrad.families.exponential import Exponential
from natgrad.families.numerics.checks import check_positive
from natgrad.typing import Array, ArrayLike, Key

_EXPONENTIAL = Exponential()


@dataclasses.dataclass(frozen=True)
class Weibull(ExponentialFamily):
    """p(y | z) ∝ y^{k − 1} e^{z y^k} for y > 0: z is −scale^−k, each entry a factor.

    Attributes:
        k: the shape, one positive number.
    """

    k: ArrayLike

    parameter_ndim: ClassVar[int] = 0

    def __post_init__(self):
        check_positive("Weibull: k", self.k, "for k = 1 use Exponential()")

    def log_normalizer(self, eta: Array) -> Array:
        """−Σ log(−η)."""
        return _EXPONENTIAL.log_normalizer(eta)

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y^k."""
        y = jnp.asarray(y)
        return y ** self._k(y)

    def log_base_measure(self, y: Array) -> Array:
        """h(y) = Σ log k + (k − 1) log y."""
        y = jnp.asarray(y)
        k = self._k(y)
        return jnp.sum(jnp.log(k) + (k - 1) * jnp.log(y))

    def expected_log_base_measure(self, eta: Array) -> Array:
        """Σ log k − (1 − 1/k)(γ + log(−η)) with Euler's constant γ."""
        k = self._k(eta)
        mean_log = -(np.euler_gamma + jnp.log(-eta)) / k
        return jnp.sum(jnp.log(k) + (k - 1) * mean_log)

    def mean(self, eta: Array) -> Array:
        """The expectation of y^k, −1/η."""
        return _EXPONENTIAL.mean(eta)

    def natural(self, mu: Array) -> Array:
        """−1/μ; NaN unless μ is positive."""
        return _EXPONENTIAL.natural(mu)

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ u − log(1 + u) with u = (z2 − z)/z."""
        return _EXPONENTIAL.kl(z, z2)

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """The exponential law's two nodes to the power 1/k."""
        xs, weights = _EXPONENTIAL.nodes(z)
        return xs ** (1 / self._k(z)), weights

    def sample(self, key: Key, z: Array) -> Array:
        """A positive number for each factor."""
        draw = _EXPONENTIAL.sample(key, z) ** (1 / self._k(z))
        limits = jnp.finfo(z.dtype)
        return jnp.clip(draw, limits.tiny, limits.max)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is positive and finite."""
        del z
        return (y > 0) & jnp.isfinite(y)

    def _k(self, z: Array) -> Array:
        return jnp.asarray(self.k, z.dtype)

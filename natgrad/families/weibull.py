"""Weibull law with known shape k and scale s, parametrised by η = −s^−k.

    A(η) = −log(−η),   T(y) = y^k,   h(y) = log k + (k − 1) log y,
    mean μ = s^k,   F_η = 1/η²:

the exponential law of y^k.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp
import numpy as np

from natgrad.families.exponential import Exponential
from natgrad.families.numerics.checks import check_positive, positive_and_finite
from natgrad.families.transformed import ExponentialTransformed
from natgrad.typing import Array, ArrayLike, Key


def _root(law: Weibull, x: Array) -> Array:
    return x ** (1 / law._k(x))


def _power(law: Weibull, y: Array) -> Array:
    return y ** law._k(y)


def _log_slope(law: Weibull, y: Array) -> Array:
    k = law._k(y)
    return jnp.log(k) + (k - 1) * jnp.log(y)


@dataclasses.dataclass(frozen=True)
class Weibull(ExponentialTransformed):
    """p(y | z) ∝ y^{k − 1} e^{z y^k} for y > 0: z is −scale^−k, each entry a factor.

    Attributes:
        k: the shape, one positive number.
    """

    family: ClassVar[Exponential] = Exponential()
    forward: ClassVar[Callable] = _root
    inverse: ClassVar[Callable] = _power
    log_derivative: ClassVar[Callable] = _log_slope

    k: ArrayLike

    def __post_init__(self):
        check_positive("Weibull: k", self.k, "for k = 1 use Exponential()")

    def expected_log_base_measure(self, eta: Array) -> Array:
        """Σ log k − (1 − 1/k)(γ + log(−η)) with Euler's constant γ."""
        k = self._k(eta)
        mean_log = -(np.euler_gamma + jnp.log(-eta)) / k
        return jnp.sum(jnp.log(k) + (k - 1) * mean_log)

    def sample(self, key: Key, z: Array) -> Array:
        """A draw of the exponential law to the power 1/k, positive and finite."""
        return positive_and_finite(super().sample(key, z))

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is positive and finite."""
        del z
        return (y > 0) & jnp.isfinite(y)

    def _k(self, y: Array) -> Array:
        return jnp.asarray(self.k, jnp.result_type(y, float))

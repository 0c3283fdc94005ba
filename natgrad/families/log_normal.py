"""Log-normal law: log y ~ N(m, v), in the natural parameters η = (m/v, −1/(2v)).

T(y) = (log y, log² y),   h(y) = −log y;   A, mean, F and KL are those of `Normal`,

since y -> log y is a bijection of the sample space.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax.numpy as jnp

from natgrad.families.normal import Normal
from natgrad.families.numerics.checks import positive_and_finite
from natgrad.families.transformed import ExponentialTransformed
from natgrad.typing import Array, Key


def _minus_log(y: Array) -> Array:
    return -jnp.log(y)


@dataclasses.dataclass(frozen=True)
class LogNormal(ExponentialTransformed):
    """y = e^x with x ~ N(m, v): the last axis of z [..., 2] holds (m/v, −1/(2v))."""

    family: ClassVar[Normal] = Normal()
    forward: ClassVar[Callable] = staticmethod(jnp.exp)
    inverse: ClassVar[Callable] = staticmethod(jnp.log)
    log_derivative: ClassVar[Callable] = staticmethod(_minus_log)

    def expected_log_base_measure(self, eta: Array) -> Array:
        """−Σ m."""
        return -jnp.sum(self.mean(eta)[..., 0])

    def mean_complement(self, eta: Array) -> Array:
        """The variance v = μ₂ − μ₁² of log y, where that cancels."""
        return self.family.mean_complement(eta)

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(m/v, −1/(2v)) of the mean μ₁ and the variance v; NaN unless v > 0."""
        return self.family.natural_from_complement(mu, complement)

    def entropy(self, eta: Array) -> Array:
        """Σ log(2πe v)/2 + m."""
        return self.family.entropy(eta) - self.expected_log_base_measure(eta)

    def sample(self, key: Key, z: Array) -> Array:
        """e^x of a draw x, positive and finite."""
        return positive_and_finite(super().sample(key, z))

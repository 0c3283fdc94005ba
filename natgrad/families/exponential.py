"""Exponential law of a waiting time, parametrised by η = −rate.

A(η) = −log(−η),   T(y) = y,   mean μ = −1/η,   F_η = 1/η²,
KL(η ‖ η') = u − log(1 + u)  with  u = (η' − η)/η.
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import inside
from natgrad.families.numerics.remainders import quotient, ratio_remainder
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Exponential(ExponentialFamily):
    """p(y | z) = −z e^{z y} for y > 0: z is minus the rate, each entry a factor."""

    parameter_ndim: ClassVar[int] = 0
    domain: ClassVar[str] = "z below 0, as -softplus(output)"

    def log_normalizer(self, eta: Array) -> Array:
        """−Σ log(−η)."""
        return -jnp.sum(jnp.log(-eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y."""
        return jnp.asarray(y)

    def mean(self, eta: Array) -> Array:
        """The mean waiting time −1/η."""
        return -quotient(jnp.ones_like(eta), eta)

    def natural(self, mu: Array) -> Array:
        """−1/μ; NaN unless μ is positive."""
        return inside(mu > 0, -1 / mu)

    def entropy(self, eta: Array) -> Array:
        """Σ 1 − log(−η)."""
        return jnp.sum(1 - jnp.log(-eta))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ u − log(1 + u) with u = (z2 − z)/z."""
        return jnp.sum(ratio_remainder(z, z2, z2 - z))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """The two Gauss-Laguerre points μ(2 ± √2): exact to degree 3 in y."""
        ys = jnp.array([2 - math.sqrt(2), 2 + math.sqrt(2)], z.dtype)
        weights = jnp.array([2 + math.sqrt(2), 2 - math.sqrt(2)], z.dtype) / 4
        return -ys / z, weights

    def sample(self, key: Key, z: Array) -> Array:
        """A positive waiting time for each factor."""
        draw = jax.random.exponential(key, z.shape, z.dtype)
        return -jnp.maximum(draw, jnp.finfo(z.dtype).tiny) / z

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite and at least 0."""
        del z
        return (y >= 0) & jnp.isfinite(y)

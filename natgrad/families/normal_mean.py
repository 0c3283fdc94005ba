"""Normal law with known scale σ, parametrised by its mean: the squared-error loss.

log p(y | z) = −(y − z)²/(2σ²) − log σ − log(2π)/2,   F_z = 1/σ²,
KL(z ‖ z') = (z − z')²/(2σ²).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.families.numerics.checks import check_positive, diagonal
from natgrad.typing import Array, ArrayLike, Key


@dataclasses.dataclass(frozen=True)
class NormalMean(Family):
    """y ~ N(z, scale²): z is the mean, each entry a factor.

    Attributes:
        scale: the standard deviation σ, one number.
    """

    scale: ArrayLike = 1.0

    parameter_ndim: ClassVar[int] = 0

    def __post_init__(self):
        cure = "for a scale that is learned or varies use NormalMeanLogScale()"
        check_positive("NormalMean: scale", self.scale, cure)

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ −(y − z)²/(2σ²) − log σ − log(2π)/2."""
        scale = self._scale(z)
        residual = (jnp.asarray(y, z.dtype) - z) / scale
        return jnp.sum(
            -0.5 * residual**2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)
        )

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ (z − z2)²/(2σ²)."""
        return 0.5 * jnp.sum(((z - z2) / self._scale(z)) ** 2)

    def score(self, z: Array, y: Array) -> Array:
        """(y − z)/σ²."""
        return (jnp.asarray(y, z.dtype) - z) / self._scale(z) ** 2

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """The points z ± σ with equal weights: exact, the score is affine in y."""
        scale = self._scale(z)
        return jnp.stack([z - scale, z + scale]), jnp.full(2, 0.5, z.dtype)

    def fisher(self, z: Array) -> Array:
        """1/σ² on the diagonal, of shape z.shape * 2."""
        return diagonal(jnp.ones_like(z) / self._scale(z) ** 2)

    def fisher_product(self, z: Array, v: Array) -> Array:
        """v/σ²."""
        return v / self._scale(z) ** 2

    def sample(self, key: Key, z: Array) -> Array:
        """A draw z + σ ε with ε standard normal."""
        return z + self._scale(z) * jax.random.normal(key, z.shape, z.dtype)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite."""
        del z
        return jnp.isfinite(y)

    def _scale(self, z: Array) -> Array:
        return jnp.asarray(self.scale, z.dtype)

"""Normal law of a vector y of d independent entries with means m_i and variances v_i.

    η = (m_i/v_i for i = 1 … d, then −1/(2v_i)),   T(y) = (y_i, then y_i²),

d normal laws in their natural parameters (see `Normal`) that share one label.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.normal import Normal
from natgrad.families.numerics.gaussian_rule import gaussian_rule
from natgrad.typing import Array, Key

_NORMAL = Normal()


@dataclasses.dataclass(frozen=True)
class MultivariateNormalDiag(ExponentialFamily):
    """y ~ N(m, diag(v)), y [d]: the last axis of z holds (m/v, −1/(2v)), 2d numbers."""

    parameter_ndim: ClassVar[int] = 1
    label_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "the second half of z below 0, as -softplus(output)"

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ of the normal laws' log-probabilities."""
        return _NORMAL.log_prob(_pairs(z), y)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ of the normal laws' A."""
        return _NORMAL.log_normalizer(_pairs(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (y, y²)."""
        y = jnp.asarray(y)
        return jnp.concatenate([y, y**2], axis=-1)

    def mean(self, eta: Array) -> Array:
        """(m, m² + v)."""
        return _joined(_NORMAL.mean(_pairs(eta)))

    def natural(self, mu: Array) -> Array:
        """(m/v, −1/(2v)); NaN unless v = μ₂ − μ₁² > 0 beyond rounding."""
        return _joined(_NORMAL.natural(_pairs(mu)))

    def mean_complement(self, eta: Array) -> Array:
        """The variances v, of shape [..., d], where μ₂ − μ₁² cancels."""
        return _NORMAL.mean_complement(_pairs(eta))

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(m/v, −1/(2v)) of the means in mu and the variances; NaN unless v > 0."""
        return _joined(_NORMAL.natural_from_complement(_pairs(mu), complement))

    def entropy(self, eta: Array) -> Array:
        """Σ log(2πe v)/2."""
        return _NORMAL.entropy(_pairs(eta))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ of the normal laws' divergences."""
        return _NORMAL.kl(_pairs(z), _pairs(z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """Of the order of d² points, exact to degree 5 in y (see `gaussian_rule`)."""
        pairs = _pairs(z)
        points, weights = gaussian_rule(pairs.shape[-2])
        m, v = _NORMAL.mean(pairs)[..., 0], _NORMAL.mean_complement(pairs)
        moves = jnp.sqrt(v)[None] * jnp.asarray(points, z.dtype)
        return m[None] + moves, jnp.asarray(weights, z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        """A draw m + √v ε with ε standard normal, of shape z.shape[:-1] + (d,)."""
        return _NORMAL.sample(key, _pairs(z))

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether all entries of y are finite."""
        del z
        return jnp.all(jnp.isfinite(y), axis=-1)

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...]:
        """z_shape[:-1] + (d,)."""
        return (*z_shape[:-1], z_shape[-1] // 2)


def _pairs(z: Array) -> Array:
    """[..., 2d] to [..., d, 2]."""
    if z.ndim == 0 or z.shape[-1] % 2 or z.shape[-1] == 0:
        raise ValueError(
            f"MultivariateNormalDiag: z has shape {z.shape}; expected a last axis of "
            "even length 2d, d numbers mean/variance and then d numbers "
            "−1/(2 variance)."
        )
    return jnp.stack(jnp.split(z, 2, axis=-1), axis=-1)


def _joined(pairs: Array) -> Array:
    return jnp.concatenate([pairs[..., 0], pairs[..., 1]], axis=-1)

"""Location-scale families: y = m + e^ρ ε, z = (m, ρ), for a standard law of ε.

    log p(y | m, ρ) = log p(ε) − ρ,   ε = (y − m) e^−ρ,
    score = (ψ(ε) e^−ρ, ε ψ(ε) − 1)   with  ψ = −∂ log p(ε)/∂ε,
    F = diag(I₁ e^−2ρ, I₂),           I₁ = E[ψ²],  I₂ = E[(ε ψ − 1)²],

for a law of ε that is symmetric about 0.

Source: Lehmann & Casella, Theory of Point Estimation (1998), section 2.5.
"""

from __future__ import annotations

import abc
from typing import ClassVar, final

import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.families.numerics.checks import diagonal, split_pair
from natgrad.typing import Array, ArrayLike, Key


class LocationScale(Family):
    """A law of y = m + e^ρ ε: the last axis of z [..., 2] holds (m, ρ).

    A subclass gives what belongs to the standard law of ε, in the six methods
    `standard_...` and `divergence`; arrays there are elementwise over factors.
    """

    parameter_ndim: ClassVar[int] = 1

    @abc.abstractmethod
    def standard_log_prob(self, residual: Array) -> Array:
        """log p(ε) in nats, shaped like ε."""

    @abc.abstractmethod
    def standard_slopes(self, residual: Array) -> tuple[Array, Array]:
        """ψ(ε) and ε ψ(ε), both shaped like ε; the second must not overflow."""

    @abc.abstractmethod
    def standard_information(self, dtype: jnp.dtype) -> tuple[ArrayLike, ArrayLike]:
        """I₁ and I₂, two numbers."""

    @abc.abstractmethod
    def standard_nodes(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Nodes ε [K] and weights [K] that make I₁, I₂ and the mean scores exact."""

    @abc.abstractmethod
    def standard_sample(
        self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype
    ) -> Array:
        """Independent draws of ε, of this shape."""

    @abc.abstractmethod
    def divergence(self, gap: Array, log_scale: Array, log_scale2: Array) -> Array:
        """KL of each factor in nats, of the laws (m, ρ) and (m2, ρ2); gap is m − m2."""

    @final
    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ log p(ε) − ρ in nats, shape ()."""
        residual, log_scale = self._residual(z, y)
        return jnp.sum(self.standard_log_prob(residual) - log_scale)

    @final
    def kl(self, z: Array, z2: Array) -> Array:
        """Σ of the factors' divergences in nats, shape ()."""
        (location, log_scale), (location2, log_scale2) = self._split(z), self._split(z2)
        return jnp.sum(self.divergence(location - location2, log_scale, log_scale2))

    @final
    def score(self, z: Array, y: Array) -> Array:
        """(ψ(ε) e^−ρ, ε ψ(ε) − 1) in the last axis, shaped like z."""
        residual, log_scale = self._residual(z, y)
        slope, product = self.standard_slopes(residual)
        return jnp.stack([slope * jnp.exp(-log_scale), product - 1], axis=-1)

    @final
    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """m + e^ρ ε at the standard law's nodes ε."""
        location, log_scale = self._split(z)
        residuals, weights = self.standard_nodes(z.dtype)
        return location + jnp.exp(log_scale) * residuals, weights

    @final
    def fisher(self, z: Array) -> Array:
        """diag(I₁ e^−2ρ, I₂) of each factor, of shape z.shape + z.shape."""
        return diagonal(self._information(z))

    @final
    def fisher_product(self, z: Array, v: Array) -> Array:
        """diag(I₁ e^−2ρ, I₂) v, shaped like z."""
        return self._information(z) * v

    @final
    def sample(self, key: Key, z: Array) -> Array:
        """Draws m + e^ρ ε, of shape z.shape[:-1]."""
        location, log_scale = self._split(z)
        draw = self.standard_sample(key, location.shape, z.dtype)
        return location + jnp.exp(log_scale) * draw

    @final
    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite, shaped like y."""
        del z
        return jnp.isfinite(y)

    def _split(self, z: Array) -> tuple[Array, Array]:
        return split_pair(type(self).__name__, "(location, log scale)", z)

    def _residual(self, z: Array, y: Array) -> tuple[Array, Array]:
        location, log_scale = self._split(z)
        residual = (jnp.asarray(y, z.dtype) - location) * jnp.exp(-log_scale)
        return residual, log_scale

    def _information(self, z: Array) -> Array:
        log_scale = self._split(z)[1]
        of_location, of_scale = self.standard_information(z.dtype)
        return jnp.stack(
            [of_location * jnp.exp(-2 * log_scale), jnp.full_like(log_scale, of_scale)],
            axis=-1,
        )

"""Inverse gamma law with shape a and scale b, in η = (−a − 1, −b): 1/y is Gamma(a, b).

    A(η) = log Γ(a) − a log b,   T(y) = (log y, 1/y),
    mean μ = (log b − ψ(a), a/b),   F_η = [[ψ'(a), −1/b], [−1/b, a/b²]].

The gamma law of 1/y has the natural parameters (−2 − η₁, η₂) and the mean (−μ₁, μ₂); so
everything is that of `Gamma`, since y -> 1/y is a bijection. The first map is exact in
floating point for a < 2²⁵ (single) and 2⁵⁴ (double precision).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.gamma import Gamma, log_gamma_nodes
from natgrad.families.numerics.checks import positive_and_finite, split_pair
from natgrad.typing import Array, Key

_GAMMA = Gamma()


@dataclasses.dataclass(frozen=True)
class InverseGamma(ExponentialFamily):
    """p(y) ∝ y^{−a − 1} e^{−b/y} for y > 0: the last axis of z holds (−a − 1, −b)."""

    parameter_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "z[..., 0] below -1 and z[..., 1] below 0, as by -softplus"

    def log_prob(self, z: Array, y: Array) -> Array:
        """That of the gamma law of 1/y, and −Σ 2 log y."""
        y = jnp.asarray(y, z.dtype)
        return _GAMMA.log_prob(_of_gamma(z), 1 / y) - 2 * jnp.sum(jnp.log(y))

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log Γ(a) − a log b."""
        return _GAMMA.log_normalizer(_of_gamma(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (log y, 1/y)."""
        y = jnp.asarray(y)
        return jnp.stack([jnp.log(y), 1 / y], axis=-1)

    def mean(self, eta: Array) -> Array:
        """(log b − ψ(a), a/b)."""
        return _mirrored(_GAMMA.mean(_of_gamma(eta)))

    def score(self, z: Array, y: Array) -> Array:
        """(log y − μ₁, 1/y − μ₂)."""
        return _mirrored(_GAMMA.score(_of_gamma(z), 1 / jnp.asarray(y, z.dtype)))

    def natural(self, mu: Array) -> Array:
        """(−a − 1, −b), where log a − ψ(a) = log μ₂ + μ₁ and b = a/μ₂.

        NaN unless log μ₂ > −μ₁ beyond rounding.
        """
        return _of_gamma(_GAMMA.natural(_mirrored(mu)))

    def mean_complement(self, eta: Array) -> Array:
        """log μ₂ + μ₁ = log a − ψ(a), of shape eta.shape[:-1], where that cancels."""
        return _GAMMA.mean_complement(_of_gamma(eta))

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(−a − 1, −b) of μ₂ and log μ₂ + μ₁; NaN unless both are positive."""
        return _of_gamma(_GAMMA.natural_from_complement(_mirrored(mu), complement))

    def entropy(self, eta: Array) -> Array:
        """That of the gamma law of 1/y, and Σ 2 E[log y]."""
        return _GAMMA.entropy(_of_gamma(eta)) + 2 * jnp.sum(self.mean(eta)[..., 0])

    def kl(self, z: Array, z2: Array) -> Array:
        """That of the gamma laws of 1/y."""
        return _GAMMA.kl(_of_gamma(z), _of_gamma(z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """The inverses of the gamma law's 58 nodes, see `Gamma.score_nodes`."""
        shape_less_one, minus_scale = _split(_of_gamma(z))
        log_inverses, weights = log_gamma_nodes(shape_less_one + 1, -minus_scale)
        return jnp.exp(-log_inverses), weights

    def sample(self, key: Key, z: Array) -> Array:
        """1/x of a draw x of the gamma law, positive and finite."""
        return positive_and_finite(1 / _GAMMA.sample(key, _of_gamma(z)))

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is positive and finite."""
        del z
        return (y > 0) & jnp.isfinite(y)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("InverseGamma", "(−shape − 1, −scale)", z)


def _of_gamma(eta: Array) -> Array:
    """Natural parameters of the gamma law of 1/y; its own inverse."""
    first, second = _split(eta)
    return jnp.stack([-2 - first, second], axis=-1)


def _mirrored(pair: Array) -> Array:
    """A mean or a score with the sign of its first coordinate changed."""
    first, second = _split(pair)
    return jnp.stack([-first, second], axis=-1)

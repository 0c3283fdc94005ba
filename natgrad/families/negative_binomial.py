"""Negative binomial law of the failures before the r-th success, with known r.

It is parametrised by η = log(1 − p), p the probability of a success:

A(η) = −r log(1 − e^η),   T(y) = y,   h(y) = log Γ(y + r)/(Γ(r) y!),
mean μ = r (1 − p)/p,   F_η = μ (1 + μ/r),   KL = r times that of the geometric law.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from natgrad.families.base import ExponentialFamily
from natgrad.families.geometric import (
    geometric_divergence,
    geometric_log_normalizer,
    geometric_mean,
)
from natgrad.families.numerics.checks import check_positive, inside
from natgrad.families.numerics.counts import expectation_of_log_gamma
from natgrad.families.numerics.special import log_gamma_excess
from natgrad.typing import Array, ArrayLike, Key

_LARGE_ODDS = 1e12


@dataclasses.dataclass(frozen=True)
class NegativeBinomial(ExponentialFamily):
    """y ~ NB(r, p): z is log(1 − p) < 0, y a count, each entry a factor.

    y may be a fraction, such as a mean of counts; y! is then Γ(y + 1).

    Attributes:
        r: the number of successes, one positive number, not necessarily an integer.
    """

    r: ArrayLike

    parameter_ndim: ClassVar[int] = 0
    domain: ClassVar[str] = "z below 0, as -softplus(output)"

    def __post_init__(self):
        cure = "for the limit of large r use Poisson(), for r = 1 Geometric()"
        check_positive("NegativeBinomial: r", self.r, cure)

    def log_normalizer(self, eta: Array) -> Array:
        """−Σ r log(1 − e^η)."""
        return self._r(eta) * jnp.sum(geometric_log_normalizer(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y."""
        return jnp.asarray(y)

    def log_base_measure(self, y: Array) -> Array:
        """h(y) = Σ log Γ(y + r) − log Γ(r) − log y!, by φ of `special` for large y."""
        y = jnp.asarray(y, jnp.result_type(y, float))
        r = self._r(y)
        x, s = y + 1, r - 1
        leading = s * jnp.log(x) + (x + s) * jnp.log1p(s / x) - s
        rest = log_gamma_excess(x + s) - log_gamma_excess(x)
        return jnp.sum(leading + rest - gammaln(r))

    def expected_log_base_measure(self, eta: Array) -> Array:
        """E[h], from the generating function E[x^y] = (1 + (1 − x)(1 − p)/p)^−r.

        Where p is below 1e-12 y is nearly a gamma variable and E[h] is
        (r − 1) E[log y] − log Γ(r); that leaves out terms of order p^min(r, 1).
        """
        r, exact = self._r(eta), geometric_mean(eta)
        large = exact > _LARGE_ODDS
        odds = jnp.where(large, 1.0, exact)
        slower = jnp.minimum(r, 1.0)

        def integrand(t, x):
            rest = -jnp.expm1(-r * jnp.log1p(odds * x))
            # e^−t − e^−rt
            gap = -jnp.exp(-slower * t) * jnp.expm1(-jnp.abs(r - 1) * t)
            return rest * jnp.sign(r - 1) * gap / x

        usual = expectation_of_log_gamma(integrand, eta.dtype)
        mean_log = digamma(r) + jnp.log(jnp.where(large, exact, 1.0))
        limit = (r - 1) * mean_log - gammaln(r)
        return jnp.sum(jnp.where(large, limit, usual))

    def mean(self, eta: Array) -> Array:
        """The expected count r/(e^−η − 1)."""
        return self._r(eta) * geometric_mean(eta)

    def natural(self, mu: Array) -> Array:
        """log(μ/(r + μ)); NaN where μ is negative, −∞ where it is 0."""
        return inside(mu >= 0, -jnp.log1p(self._r(mu) / mu))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ r ((x − log(1 + x)) + μ (e^d − 1 − d)), see `Geometric.kl`."""
        return self._r(z) * jnp.sum(geometric_divergence(z, z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """μ ± √(μ + μ²/r) with equal weights, which are not counts.

        They have the mean and variance of the law, and the score y − μ is affine in y.
        """
        mean = self.mean(z)
        deviation = jnp.sqrt(mean * (1 + mean / self._r(z)))
        return jnp.stack([mean - deviation, mean + deviation]), jnp.full(
            2, 0.5, z.dtype
        )

    def sample(self, key: Key, z: Array) -> Array:
        """A count for each factor, an integer array shaped like z.

        A Poisson count whose rate has a gamma law of shape r and mean μ.
        """
        key1, key2 = jax.random.split(key)
        mixing = jax.random.gamma(key1, self._r(z), z.shape, z.dtype)
        rate = mixing * geometric_mean(z)
        return jax.random.poisson(key2, rate).astype(jnp.int32)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite and at least 0: a count, or a mean of counts."""
        del z
        return (y >= 0) & jnp.isfinite(y)

    def _r(self, z: Array) -> Array:
        return jnp.asarray(self.r, z.dtype)

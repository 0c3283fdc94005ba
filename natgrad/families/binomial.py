"""Binomial law of the number of successes in n trials, parametrised by the logit.

A(η) = n log(1 + e^η),   T(y) = y,   h(y) = log C(n, y),   mean n p with p = σ(η),
F_η = n p (1 − p),   KL = n times that of one trial.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

from natgrad.families.base import ExponentialFamily
from natgrad.families.bernoulli import binary_divergence
from natgrad.families.numerics.checks import check_positive, inside
from natgrad.families.numerics.counts import expectation_of_log_gamma
from natgrad.families.numerics.remainders import logistic, poisson_deviance
from natgrad.families.numerics.special import log_factorial_excess
from natgrad.typing import Array, ArrayLike, Key


@dataclasses.dataclass(frozen=True)
class Binomial(ExponentialFamily):
    """y ~ Binomial(n, σ(z)): z is the logit, y a count, each entry a factor.

    y may be any number in [0, n], such as a mean of counts; the factorials of the
    binomial coefficient are then gamma functions.

    Attributes:
        n: the number of trials, one positive integer.
    """

    n: ArrayLike

    parameter_ndim: ClassVar[int] = 0

    def __post_init__(self):
        cure = "the number of trials; for one trial use Bernoulli()"
        check_positive("Binomial: n", self.n, cure, integer=True)

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ log C(n, y) + y z − n log(1 + e^z), less what cancels."""
        n, y = self._n(z), jnp.asarray(y, z.dtype)
        mean = lambda z: jnp.log(n) - jax.nn.softplus(-z)
        spread = poisson_deviance(y, mean(z)) + poisson_deviance(n - y, mean(-z))
        rest = log_factorial_excess(y) + log_factorial_excess(n - y)
        return jnp.sum(log_factorial_excess(n) - rest - spread)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ n log(1 + e^η)."""
        return self._n(eta) * jnp.sum(jax.nn.softplus(eta))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = y."""
        return jnp.asarray(y)

    def log_base_measure(self, y: Array) -> Array:
        """h(y) = Σ log C(n, y)."""
        y = jnp.asarray(y, jnp.result_type(y, float))
        n = self._n(y)
        others = gammaln(y + 1) + gammaln(n - y + 1)
        return jnp.sum(gammaln(n + 1) - others)

    def expected_log_base_measure(self, eta: Array) -> Array:
        """Σ E[log C(n, y)], from the generating function E[x^y] = (1 − p + p x)^n."""
        n, p, q = self._n(eta), logistic(eta), logistic(-eta)

        def integrand(t, x):
            # 1 − p x and 1 − q x, of which one may round to 0.
            rest, tiny = jnp.exp(-t), jnp.finfo(eta.dtype).tiny
            late = x > 0.5
            log_rest = lambda p, q: jnp.where(
                late,
                jnp.log(jnp.maximum(q + p * rest, tiny)),
                jnp.log1p(-p * jnp.where(late, 0.0, x)),
            )
            successes = -jnp.expm1(n * log_rest(p, q))
            failures = -jnp.expm1(n * log_rest(q, p))
            return (successes + failures + jnp.expm1(-n * t)) / jnp.expm1(t)

        return jnp.sum(expectation_of_log_gamma(integrand, eta.dtype))

    def mean(self, eta: Array) -> Array:
        """The expected count n σ(η)."""
        return self._n(eta) * logistic(eta)

    def natural(self, mu: Array) -> Array:
        """The logit log(μ / (n − μ)); NaN outside [0, n], ±∞ at its ends."""
        return self.natural_from_complement(mu, self._n(mu) - mu)

    def mean_complement(self, eta: Array) -> Array:
        """n − μ, which keeps its accuracy where μ rounds to n."""
        return self._n(eta) * logistic(-eta)

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """The logit log(μ / (n − μ)) of both; NaN where one is negative."""
        return inside((mu >= 0) & (complement >= 0), jnp.log(mu) - jnp.log(complement))

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ n log((1 − p) e^{−p d} + p e^{(1 − p) d}) with d = z2 − z."""
        return self._n(z) * jnp.sum(binary_divergence(z, z2))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """0, n p and n, which need not all be counts.

        They have the mean and variance of the law, and the score y − n p is affine
        in y.
        """
        n, p, q = self._n(z), logistic(z), logistic(-z)
        ys = jnp.stack([jnp.zeros_like(z), n * p, n])
        return ys, jnp.stack([q / n, 1 - 1 / n, p / n])

    def sample(self, key: Key, z: Array) -> Array:
        """A count for each factor, an integer array shaped like z."""
        n = jnp.broadcast_to(self._n(z), z.shape)
        # The rarer outcome is drawn: its probability does not round to 1.
        draw = jax.random.binomial(key, n, logistic(-jnp.abs(z)), dtype=z.dtype)
        return jnp.where(z > 0, n - draw, draw).astype(jnp.int32)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y lies in [0, n]."""
        return (y >= 0) & (y <= self._n(z))

    def _n(self, z: Array) -> Array:
        return jnp.asarray(self.n, z.dtype)

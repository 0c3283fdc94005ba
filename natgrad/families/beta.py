"""Beta law of one proportion, in its natural parameters η = (a − 1, b − 1).

    A(η) = log Γ(a) + log Γ(b) − log Γ(a + b),   T(y) = (log y, log(1 − y)),
    mean μ = (ψ(a), ψ(b)) − ψ(a + b),   F_η = diag(ψ'(a), ψ'(b)) − ψ'(a + b) 1 1ᵀ,

the Dirichlet law of (y, 1 − y). Labels near 1 round to it, and with them log(1 − y);
where b is small that is much of the law. So `log_prob`, the score and the nodes also
know a label as −(1 − y): a number in [−1, 0) stands for the proportion 1 more. Data of
a `Model` are proportions in (0, 1); or use `Dirichlet`, whose labels hold both.

Nodes. In x = log(y/(1 − y)) the density is proportional to e^{a x}/(1 + e^x)^{a + b}:
a Gauss-Legendre rule over the bulk, in a variable that is stretched about the mode, and
two Gauss-Laguerre points for each of its exponential tails. The weights are divided by
their sum. Labels near 1 come as −(1 − y). Within 1e-11 of the closed form at the tests'
points, a and b from 0.01 to 1e5; below 0.006 (float64) or 0.06 (float32) the labels
underflow.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln

from natgrad.families.base import ExponentialFamily
from natgrad.families.dirichlet import (
    concentrations_from_mean,
    dirichlet_divergence,
    dirichlet_entropy,
    dirichlet_slope,
    log_complement,
)
from natgrad.families.numerics.checks import inside, split_pair
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.remainders import entropy_remainder, log_mean_exp
from natgrad.families.numerics.shares import mean_log, mean_log_complement
from natgrad.families.numerics.special import log_gamma_excess
from natgrad.typing import Array, Key

_LEGENDRE = np.polynomial.legendre.leggauss(80)
_LAGUERRE = np.polynomial.laguerre.laggauss(2)


@dataclasses.dataclass(frozen=True)
class Beta(ExponentialFamily):
    """y ~ Beta(a, b), 0 < y < 1: the last axis of z holds (a − 1, b − 1)."""

    parameter_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "both entries of z above -1, as softplus(output) - 1"

    def log_prob(self, z: Array, y: Array) -> Array:
        """That of the Dirichlet law of (y, 1 − y), also for labels −(1 − y)."""
        shapes, y = _shapes(z), jnp.asarray(y, z.dtype)
        both = jnp.stack([jnp.where(y < 0, 1 + y, y), jnp.where(y < 0, -y, 1 - y)], -1)
        total = jnp.sum(shapes, axis=-1)
        expected = total[..., None] * both
        # Two differences that sum to 0, from the smaller proportion.
        gaps = shapes - expected
        flipped = -gaps[..., ::-1]
        gaps = jnp.where(both < 0.5, gaps, flipped)
        spread = entropy_remainder(expected, shapes, gaps) + jnp.log(both)
        kernel = jnp.sum(spread + log_gamma_excess(shapes), axis=-1)
        return jnp.sum(log_gamma_excess(total) - kernel)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log Γ(a) + log Γ(b) − log Γ(a + b)."""
        shapes = _shapes(eta)
        shapes = inside(shapes >= 0, shapes)  # between negative integers Γ is finite
        return jnp.sum(gammaln(shapes)) - jnp.sum(gammaln(jnp.sum(shapes, axis=-1)))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (log y, log(1 − y)), also for labels −(1 − y)."""
        y = jnp.asarray(y)
        complement = y < 0
        up, down = jnp.where(complement, 0.5, y), jnp.where(complement, -y, 0.5)
        return jnp.stack(
            [
                jnp.where(complement, jnp.log1p(-down), jnp.log(up)),
                jnp.where(complement, jnp.log(down), jnp.log1p(-up)),
            ],
            axis=-1,
        )

    def mean(self, eta: Array) -> Array:
        """The expectations of log y and log(1 − y)."""
        return mean_log(_shapes(eta))

    def natural(self, mu: Array) -> Array:
        """(a − 1, b − 1); NaN unless e^μ₁ + e^μ₂ < 1 beyond rounding."""
        return self.natural_from_complement(mu, log_complement(mu))

    def mean_complement(self, eta: Array) -> Array:
        """−log(e^μ₁ + e^μ₂), of shape eta.shape[:-1], where that cancels."""
        return mean_log_complement(_shapes(eta))

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """(a − 1, b − 1) of μ and −log(e^μ₁ + e^μ₂); NaN unless that is positive.

        Derivatives are those along μ, which determines the complement.
        """
        _split(mu)
        return concentrations_from_mean(mu, complement) - 1

    def entropy(self, eta: Array) -> Array:
        """That of the Dirichlet law of (y, 1 − y)."""
        return jnp.sum(dirichlet_entropy(_shapes(eta)))

    def kl(self, z: Array, z2: Array) -> Array:
        """That of the Dirichlet laws of (y, 1 − y)."""
        near = jnp.all(jnp.abs(z2 - z) < 0.5 * _shapes(z), axis=-1)
        slope = functools.partial(dirichlet_slope, self)
        return jnp.sum(divergence(self, dirichlet_divergence, z, z2, near, slope))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """84 points, those near 1 as −(1 − y)."""
        shapes = _shapes(z)
        logits, log_weights = _logit_nodes(shapes[0], shapes[1])
        small = jax.nn.sigmoid(-jnp.abs(logits))
        return jnp.where(logits > 0, -small, small), jax.nn.softmax(log_weights)

    def sample(self, key: Key, z: Array) -> Array:
        """A number for each factor, inside of (0, 1) by rounding towards the middle."""
        logs = jax.random.loggamma(key, _shapes(z), dtype=z.dtype)
        draw = jax.nn.sigmoid(logs[..., 0] - logs[..., 1])
        limits = jnp.finfo(z.dtype)
        return jnp.clip(draw, limits.tiny, 1 - limits.epsneg)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is between 0 and 1: labels −(1 − y) are for nodes alone."""
        del z
        return (y > 0) & (y < 1)


def _split(z: Array) -> tuple[Array, Array]:
    return split_pair("Beta", "(a − 1, b − 1)", z)


def _shapes(z: Array) -> Array:
    _split(z)
    return z + 1


def _logit_nodes(a: Array, b: Array) -> tuple[Array, Array]:
    """Points x [84] and the logarithms of their weights, up to a constant.

    The bulk ends where the density has fallen by about e^−40, or where an exponential
    is left of it. With p = a/(a + b), v = x − log(a/b) the logarithm of the density is
    −(a + b) log((1 − p) e^{−p v} + p e^{(1 − p) v}) up to a constant.
    """
    (legendre, legendre_weights), (laguerre, laguerre_weights) = (
        [jnp.asarray(array, a.dtype) for array in rule]
        for rule in (_LEGENDRE, _LAGUERRE)
    )
    mode, total = jnp.log(a / b), a + b
    spread = jnp.sqrt(90 / a + 90 / b)
    exponential = 30 + jnp.log1p(total)
    upper = jnp.log1p(spread + 45 / a) + 45 / b
    lower = -jnp.log1p(spread + 45 / b) - 45 / a
    upper = jnp.minimum(upper, exponential - mode)
    lower = jnp.maximum(lower, -exponential - mode)
    # v = scale sinh(s): finest about the mode.
    scale = jnp.minimum(spread / 4, 3.0)
    first, last = jnp.arcsinh(lower / scale), jnp.arcsinh(upper / scale)
    s = first + (last - first) * (1 + legendre) / 2
    jacobian = (last - first) / 2 * legendre_weights * scale * jnp.cosh(s)
    v = jnp.concatenate(
        [scale * jnp.sinh(s), lower - laguerre / a, upper + laguerre / b]
    )
    log_shares = jnp.broadcast_to(jnp.log(jnp.stack([b, a]) / total), (v.size, 2))
    deviations = jnp.stack([-a / total * v, b / total * v], axis=-1)
    log_density = -total * log_mean_exp(log_shares, deviations)
    log_rule = jnp.concatenate(
        [
            jnp.log(jacobian),
            jnp.log(laguerre_weights / a) + laguerre,
            jnp.log(laguerre_weights / b) + laguerre,
        ]
    )
    return mode + v, log_density + log_rule

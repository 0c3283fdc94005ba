"""Expectations by draws of q, each evaluation with a key.

Source: Khan & Rue (2023), The Bayesian learning rule; Price (1958), A useful theorem
for nonlinear devices having Gaussian inputs; Kool, van Hoof & Welling (2019), Buy 4
REINFORCE samples, get a baseline for free, for the score function's baseline.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp

from natgrad.families import (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    InverseGaussian,
    MultivariateNormal,
    MultivariateNormalDiag,
    NegativeBinomial,
    Poisson,
    VonMises,
)
from natgrad.families.base import ExponentialFamily
from natgrad.inference.dual import (
    diagonal_moments,
    from_covariance_gradient,
    from_variance_gradient,
)
from natgrad.inference.expectations import Expectation, LogDensity
from natgrad.typing import Array, Key

# Discrete laws, and two whose draws choose between values.
_NOT_SMOOTH = (
    Bernoulli,
    Binomial,
    Categorical,
    Geometric,
    InverseGaussian,
    NegativeBinomial,
    Poisson,
    VonMises,
)


@dataclasses.dataclass(frozen=True)
class Sampling(Expectation):
    """The mean of f over draws of q, which must be differentiable in η.

    They are for normal, log-normal, gamma, inverse gamma, exponential, Weibull, beta
    and Dirichlet laws. Discrete, inverse Gaussian and von Mises laws are refused: use
    `ScoreFunction`. The `sample` of your own family has to be differentiable.

    Attributes:
        log_density: f(w, data) -> nats, shape ().
        samples: draws for each evaluation.
    """

    log_density: LogDensity
    samples: int = 16

    def value(self, family, eta, data, key):
        """Σ_k f(w_k, data)/K."""
        if isinstance(family, _NOT_SMOOTH):
            raise ValueError(
                f"Sampling: the draws of {family!r} have no derivative; use Quadrature "
                "or ScoreFunction."
            )
        ws = _draws(self, family, eta, key)
        return jnp.mean(jax.vmap(lambda w: self.log_density(w, data))(ws))


@dataclasses.dataclass(frozen=True)
class ScoreFunction(Expectation):
    """The mean of f over draws of q, with derivatives Σ_k (f_k − b_k) ∇log q(w_k)/K.

    b_k is the mean of the other draws' f. For any family, discrete ones included, but
    noisier than `Sampling`. It is the first derivative that is unbiased.

    Attributes:
        log_density: f(w, data) -> nats, shape ().
        samples: draws for each evaluation, at least 2.
    """

    log_density: LogDensity
    samples: int = 64

    def value(self, family, eta, data, key):
        """Σ_k f(w_k, data)/K."""
        if self.samples == 1:
            raise ValueError("ScoreFunction: samples is 1; expected at least 2.")
        fixed = jax.lax.stop_gradient(eta)
        ws = _draws(self, family, fixed, key)
        values = jax.vmap(lambda w: self.log_density(w, data))(ws)
        log_probs = jax.vmap(lambda w: family.log_prob(eta, w))(ws)
        zeros = jnp.expm1(log_probs - jax.lax.stop_gradient(log_probs))
        others = (jnp.sum(values) - values) / (self.samples - 1)
        return jnp.mean(values + jax.lax.stop_gradient(values - others) * zeros)


@dataclasses.dataclass(frozen=True)
class BonnetPrice(Expectation):
    """Draws w_k of a Gaussian law, with ∇_m = E[∇f] and ∇_S = E[∇²f]/2.

    Where f is concave the precision of every step is at least the prior's share; with
    `Sampling` it is so on average only. Costs a Hessian for each draw.

    Attributes:
        log_density: f(w, data) -> nats, shape (); twice differentiable.
        samples: draws for each evaluation.
    """

    log_density: LogDensity
    samples: int = 16

    def value(self, family, eta, data, key):
        """Σ_k f(w_k, data)/K."""
        ws = _draws(self, family, eta, key)
        return jnp.mean(jax.vmap(lambda w: self.log_density(w, data))(ws))

    def value_and_gradient(self, family, eta, data, key):
        """The mean of f, and its gradient in μ from those of ∇f and ∇²f."""

        def function(w):
            return self.log_density(w, data)

        ws = _draws(self, family, eta, key)
        values, slopes = jax.vmap(jax.value_and_grad(function))(ws)
        hessian = jnp.mean(jax.vmap(jax.hessian(function))(ws), axis=0)
        slope = jnp.mean(slopes, axis=0)
        return jnp.mean(values), _bonnet_price(family, eta, slope, hessian)


@functools.singledispatch
def _bonnet_price(
    family: ExponentialFamily, eta: Array, slope: Array, hessian: Array
) -> Array:
    """∇_μ E[f] from E[∇f] and E[∇²f]."""
    del eta, slope, hessian
    raise ValueError(
        f"BonnetPrice is for MultivariateNormal and MultivariateNormalDiag, not for "
        f"{family!r}: use Sampling."
    )


@_bonnet_price.register
def _(family: MultivariateNormal, eta, slope, hessian):
    m, _ = family.mean_and_covariance(eta)
    return from_covariance_gradient(m, slope, hessian / 2)


@_bonnet_price.register
def _(family: MultivariateNormalDiag, eta, slope, hessian):
    m, _ = diagonal_moments(family, eta)
    return from_variance_gradient(m, slope, jnp.diagonal(hessian) / 2)


def _draws(
    rule: Sampling | ScoreFunction | BonnetPrice, family, eta: Array, key: Key | None
) -> Array:
    """Draws [K, ...] of the law."""
    name = type(rule).__name__
    if key is None:
        raise ValueError(f"{name}: key is None; expected a random key for the draws.")
    if not isinstance(rule.samples, int) or rule.samples < 1:
        raise ValueError(
            f"{name}: samples is {rule.samples!r}; expected a positive integer."
        )
    keys = jax.random.split(key, rule.samples)
    return jax.vmap(lambda key: family.sample(key, eta))(keys)

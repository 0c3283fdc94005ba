"""Laws of a user's own, each beside the built-in family that it must equal."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln

import natgrad.families as nf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import distrax
    import numpyro.distributions as numpyro
    from tensorflow_probability.substrates.jax import distributions as tfp

CLASSES = 3


def softmax_log_prob(z, y):
    return jax.nn.log_softmax(z)[y]


def softmax_sample(key, z):
    return jax.random.categorical(key, z)


def softmax(**given):
    return nf.from_log_prob(softmax_log_prob, softmax_sample, **given)


def laplace_log_prob(z, y):
    return -jnp.abs(y - z[0]) * jnp.exp(-z[1]) - z[1] - jnp.log(2.0)


def laplace_sample(key, z):
    return z[0] + jnp.exp(z[1]) * jax.random.laplace(key, dtype=z.dtype)


@dataclasses.dataclass(frozen=True)
class OwnSoftmax(nf.Family):
    """The least a user writes."""

    def log_prob(self, z, y):
        return softmax_log_prob(z, y)

    def sample(self, key, z):
        return softmax_sample(key, z)


@dataclasses.dataclass(frozen=True)
class OwnSoftmaxWithLabels(OwnSoftmax):
    """And its labels."""

    def support(self, z):
        return jnp.arange(z.shape[-1])


@dataclasses.dataclass(frozen=True)
class OwnLaplace(nf.Family):
    """The least a user writes, of a law with no end of labels."""

    def log_prob(self, z, y):
        return laplace_log_prob(z, y)

    def sample(self, key, z):
        return laplace_sample(key, z)


class Law(NamedTuple):
    """How to make it, what it equals, and how many outputs it reads."""

    make: Callable[[], nf.Family]
    built_in: nf.Family
    outputs: int = CLASSES


def of(factory, **given):
    return lambda: nf.from_distribution(factory, **given)


def labels(factory):
    return of(factory, parameter_ndim=0)


def doubled(family):
    return nf.Transformed(family, lambda y: 2 * y, lambda y: y // 2, lambda y: 0.0 * y)


SOFTMAX, NORMAL = nf.Categorical(), nf.NormalMeanLogScale()
# Equal to the built-in law to rounding.
EXACT = {
    "support": Law(lambda: softmax(support=jnp.arange(CLASSES)), SOFTMAX),
    "kl": Law(lambda: softmax(kl=SOFTMAX.kl), SOFTMAX),
    "subclass with labels": Law(OwnSoftmaxWithLabels, SOFTMAX),
    "distrax categorical": Law(of(lambda z: distrax.Categorical(logits=z)), SOFTMAX),
    "distrax one-hot": Law(of(lambda z: distrax.OneHotCategorical(logits=z)), SOFTMAX),
    "numpyro categorical": Law(of(lambda z: numpyro.Categorical(logits=z)), SOFTMAX),
    "tfp categorical": Law(of(lambda z: tfp.Categorical(logits=z)), SOFTMAX),
    "tfp finite": Law(
        of(lambda z: tfp.FiniteDiscrete(jnp.array([1.0, 4.0, 9.0]), logits=z)), SOFTMAX
    ),
    "distrax bernoulli": Law(
        labels(lambda z: distrax.Bernoulli(logits=z)), nf.Bernoulli(), 2
    ),
    "distrax bernoullis": Law(
        of(lambda z: distrax.Bernoulli(logits=z)), nf.Bernoulli(), 2
    ),
    "numpyro binomial": Law(
        labels(lambda z: numpyro.Binomial(5, logits=z)), nf.Binomial(5), 2
    ),
    "tfp binomial": Law(labels(lambda z: tfp.Binomial(5, logits=z)), nf.Binomial(5), 2),
    "distrax normal": Law(of(lambda z: distrax.Normal(z[0], jnp.exp(z[1]))), NORMAL, 2),
    "exponential family": Law(
        lambda: nf.exponential_family(
            lambda y: y, lambda y: -gammaln(y + 1), jnp.exp, parameter_ndim=0
        ),
        nf.Poisson(),
        2,
    ),
    "overcomplete exponential family": Law(
        lambda: nf.exponential_family(
            lambda y: jax.nn.one_hot(y, CLASSES), lambda y: 0.0, jax.nn.logsumexp
        ),
        SOFTMAX,
    ),
    "transformed": Law(
        lambda: doubled(softmax(support=jnp.arange(CLASSES), parameter_ndim=1)), SOFTMAX
    ),
    "transformed exponential family": Law(
        lambda: doubled(
            nf.exponential_family(
                lambda y: jax.nn.one_hot(y, CLASSES), lambda y: 0.0, jax.nn.logsumexp
            )
        ),
        SOFTMAX,
    ),
    "product": Law(
        lambda: nf.Product(
            (
                nf.from_distribution(
                    lambda z: numpyro.Bernoulli(logits=z), parameter_ndim=0
                ),
                softmax(support=jnp.arange(CLASSES), parameter_ndim=1),
            ),
            (2, CLASSES),
        ),
        nf.Product((nf.Bernoulli(), SOFTMAX), (2, CLASSES)),
        2 + CLASSES,
    ),
}
# One of each constructor.
EVERYWHERE = {
    "support",
    "subclass with labels",
    "distrax categorical",
    "exponential family",
    "transformed",
    "product",
}
LAPLACE = nf.Laplace()
# Estimated from draws.
DRAWN = {
    "functions": Law(softmax, SOFTMAX),
    "subclass": Law(OwnSoftmax, SOFTMAX),
    "continuous subclass": Law(OwnLaplace, LAPLACE, 2),
    "continuous functions": Law(
        lambda: nf.from_log_prob(laplace_log_prob, laplace_sample), LAPLACE, 2
    ),
    "numpyro laplace": Law(
        of(lambda z: numpyro.Laplace(z[0], jnp.exp(z[1]))), LAPLACE, 2
    ),
    # Has |m − m2| in its divergence: its Hessian is JAX's affair.
    "distrax laplace": Law(
        of(lambda z: distrax.Laplace(z[0], jnp.exp(z[1]))), LAPLACE, 2
    ),
    "transformed": Law(
        lambda: nf.Transformed(
            nf.from_log_prob(laplace_log_prob, laplace_sample), jnp.exp, jnp.log
        ),
        LAPLACE,
        2,
    ),
    "product": Law(
        lambda: nf.Product(
            (
                nf.from_log_prob(laplace_log_prob, laplace_sample, parameter_ndim=1),
                nf.Bernoulli(),
            ),
            (2, 1),
        ),
        nf.Product((LAPLACE, nf.Bernoulli()), (2, 1)),
        3,
    ),
}

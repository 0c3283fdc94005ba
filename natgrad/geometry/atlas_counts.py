"""Domains, charts and distances of binomial, geometric and negative binomial laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natgrad.families import Bernoulli, Binomial, Geometric, NegativeBinomial
from natgrad.geometry.atlas import flat, in_unit_interval
from natgrad.geometry.charts import Atlas, Chart, register, whole_space
from natgrad.geometry.distance import bernoulli_distance, register_distance
from natgrad.typing import Array


@register(Binomial)
def _binomial(family: Binomial) -> Atlas:
    scaled = lambda x: x * jnp.asarray(family.n, x.dtype)
    probability = Chart(
        "probability",
        lambda p: family.natural(scaled(p)),
        jax.nn.sigmoid,
        in_unit_interval,
        scaled,
    )
    return Atlas(
        whole_space,
        lambda mu: in_unit_interval(mu / jnp.asarray(family.n, mu.dtype)),
        (probability,),
    )


@register(Geometric)
@register(NegativeBinomial)
def _failures(family: Geometric | NegativeBinomial) -> Atlas:
    del family
    probability = Chart(
        "probability",
        lambda p: jnp.log1p(-p),
        lambda eta: -jnp.expm1(eta),
        in_unit_interval,
    )
    log_odds = Chart(
        "log odds",
        lambda x: -jax.nn.softplus(x),
        lambda eta: jnp.log(jnp.expm1(-eta)),
    )
    return Atlas(lambda eta: flat(-eta), flat, (probability, log_odds))


@register_distance(Binomial)
def _binomial_distance(family: Binomial, eta: Array, eta2: Array) -> Array:
    """2√n |arcsin √p − arcsin √p'|."""
    scale = jnp.sqrt(jnp.asarray(family.n, eta.dtype))
    return scale * bernoulli_distance(Bernoulli(), eta, eta2)


@register_distance(Geometric)
def _geometric_distance(family: Geometric, eta: Array, eta2: Array) -> Array:
    """2 |artanh √(1 − p) − artanh √(1 − p')|."""
    del family
    return 2 * jnp.arctanh(jnp.sinh((eta - eta2) / 4) / jnp.sinh(-(eta + eta2) / 4))


@register_distance(NegativeBinomial)
def _negative_binomial_distance(
    family: NegativeBinomial, eta: Array, eta2: Array
) -> Array:
    """√r times that of the geometric law."""
    scale = jnp.sqrt(jnp.asarray(family.r, eta.dtype))
    return scale * _geometric_distance(Geometric(), eta, eta2)

"""Domains and charts of binomial, geometric and negative binomial laws."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natgrad.families import Binomial, Geometric, NegativeBinomial
from natgrad.geometry.atlas import flat, in_unit_interval
from natgrad.geometry.coordinates import Atlas, Chart, whole_space


def binomial_atlas(family: Binomial) -> Atlas:
    """The probability."""
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


def failures_atlas(family: Geometric | NegativeBinomial) -> Atlas:
    """The probability p of a success, and its log odds."""
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

"""Closed forms of the Fisher-Rao distance, and the table of the families that have one.

    CLOSED_FORMS[family type](family, η, η') -> the distance of each factor

A subclass has the form of the class it derives from, unless it has a line of its own.
They are written so that near points do not cancel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from natgrad import families
from natgrad.typing import Array

Formula = Callable[[Any, Array, Array], Array]


def register_distance(cls: type) -> Callable[[Formula], Formula]:
    """A decorator: the closed form of the distance in a class of families."""

    def keep(formula: Formula) -> Formula:
        CLOSED_FORMS[cls] = formula
        return formula

    return keep


def root(squared: Array) -> Array:
    """The square root, with the derivative 0 at 0.

    Args:
        squared: numbers of at least 0.

    Returns:
        √squared; 0 where the number is not positive.
    """
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


def normal_distance(family: families.Normal, eta: Array, eta2: Array) -> Array:
    """√2 arcosh(1 + ((m − m')²/2 + (s − s')²)/(2 s s')), also of transformed laws."""
    del family
    v, v2 = -0.5 / eta[..., 1], -0.5 / eta2[..., 1]
    s, s2 = jnp.sqrt(v), jnp.sqrt(v2)
    means, scales = eta[..., 0] * v - eta2[..., 0] * v2, s - s2
    chord = (means**2 / 2 + scales**2) / (4 * s * s2)
    return jnp.sqrt(8.0).astype(eta.dtype) * jnp.arcsinh(root(chord))


def categorical_distance(
    family: families.Categorical, eta: Array, eta2: Array
) -> Array:
    """2 arccos Σ √(p p'), by the chord."""
    gaps = jnp.sqrt(family.mean(eta)) - jnp.sqrt(family.mean(eta2))
    return 4 * jnp.arcsin(root(jnp.sum(gaps**2, axis=-1)) / 2)


def bernoulli_distance(family: families.Bernoulli, eta: Array, eta2: Array) -> Array:
    """2 (arcsin √p − arcsin √p'), by the logits."""
    del family
    return 2 * jnp.arctan(jnp.sinh((eta - eta2) / 4) / jnp.cosh((eta + eta2) / 4))


def poisson_distance(family: families.Poisson, eta: Array, eta2: Array) -> Array:
    """2 (√λ − √λ')."""
    del family
    return 4 * jnp.exp((eta + eta2) / 4) * jnp.sinh((eta - eta2) / 4)


def exponential_distance(
    family: families.Exponential, eta: Array, eta2: Array
) -> Array:
    """log η/η'."""
    del family
    return jnp.log1p((eta - eta2) / eta2)


def binomial_distance(family: families.Binomial, eta: Array, eta2: Array) -> Array:
    """2√n |arcsin √p − arcsin √p'|."""
    scale = jnp.sqrt(jnp.asarray(family.n, eta.dtype))
    return scale * bernoulli_distance(families.Bernoulli(), eta, eta2)


def geometric_distance(family: families.Geometric, eta: Array, eta2: Array) -> Array:
    """2 |artanh √(1 − p) − artanh √(1 − p')|."""
    del family
    return 2 * jnp.arctanh(jnp.sinh((eta - eta2) / 4) / jnp.sinh(-(eta + eta2) / 4))


def negative_binomial_distance(
    family: families.NegativeBinomial, eta: Array, eta2: Array
) -> Array:
    """√r times that of the geometric law."""
    scale = jnp.sqrt(jnp.asarray(family.r, eta.dtype))
    return scale * geometric_distance(families.Geometric(), eta, eta2)


CLOSED_FORMS: dict[type, Formula] = {
    families.Bernoulli: bernoulli_distance,
    families.Binomial: binomial_distance,
    families.Categorical: categorical_distance,
    families.Exponential: exponential_distance,
    families.Geometric: geometric_distance,
    families.LogNormal: normal_distance,
    families.NegativeBinomial: negative_binomial_distance,
    families.Normal: normal_distance,
    families.Poisson: poisson_distance,
    families.Weibull: exponential_distance,  # k |log s/s'|
}

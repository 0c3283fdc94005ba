"""Domains and charts of laws of positive numbers and of proportions."""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.special import logsumexp

from natgrad.families import (
    Beta,
    Dirichlet,
    InverseGamma,
    InverseGaussian,
    Weibull,
)
from natgrad.geometry.atlas import above, first, flat, pair, second
from natgrad.geometry.coordinates import Atlas, Chart
from natgrad.typing import Array


def proportions_atlas(family: Beta | Dirichlet) -> Atlas:
    """The concentrations and their logarithms."""
    del family
    concentration = Chart("concentration", lambda a: a - 1, lambda eta: eta + 1, flat)
    logs = Chart(
        "log concentration",
        lambda x: jnp.exp(x) - 1,
        lambda eta: jnp.log1p(eta),
    )
    return Atlas(lambda eta: flat(eta + 1), _below_one, (concentration, logs))


def _below_one(mu: Array) -> Array:
    """Σ e^μ < 1, by its logarithm."""
    size = jnp.sqrt(1 + jnp.sum(mu**2, axis=-1))
    rounding = (above(mu.shape[-1], mu) - 1) * size
    return flat(-logsumexp(mu, axis=-1) - rounding)


def inverse_gamma_atlas(family: InverseGamma) -> Atlas:
    """Shape and scale, and their logarithms."""
    del family
    shape_scale = Chart(
        "shape/scale",
        lambda x: pair(-first(x) - 1, -second(x)),
        lambda eta: pair(-first(eta) - 1, -second(eta)),
        flat,
    )
    return Atlas(
        lambda eta: flat(shape_scale.from_natural(eta)),
        _inverse_means,
        (shape_scale, _in_logarithms(shape_scale, "log shape/log scale")),
    )


def _inverse_means(mu: Array) -> Array:
    """μ₂ > 0 and log μ₂ > −μ₁, by Jensen's inequality."""
    mean_log, mean = first(mu), second(mu)
    rounding = (above(2, mu) - 1) * jnp.sqrt(1 + mean_log**2)
    return jnp.concatenate([flat(mean), flat(jnp.log(mean) + mean_log - rounding)])


def inverse_gaussian_atlas(family: InverseGaussian) -> Atlas:
    """Mean and shape, and their logarithms."""
    del family
    mean_shape = Chart(
        "mean/shape",
        lambda x: pair(-second(x) / (2 * first(x) ** 2), -second(x) / 2),
        lambda eta: pair(jnp.sqrt(second(eta) / first(eta)), -2 * second(eta)),
        flat,
        lambda x: pair(first(x), 1 / first(x) + 1 / second(x)),
    )
    return Atlas(
        lambda eta: flat(-eta),
        lambda mu: jnp.concatenate(
            [flat(first(mu)), flat(second(mu) - above(2, mu) / first(mu))]
        ),
        (mean_shape, _in_logarithms(mean_shape, "log mean/log shape")),
    )


def weibull_atlas(family: Weibull) -> Atlas:
    """The scale and its logarithm."""
    k = lambda x: jnp.asarray(family.k, x.dtype)
    scale = Chart(
        "scale",
        lambda s: -(s ** -k(s)),
        lambda eta: (-eta) ** (-1 / k(eta)),
        flat,
        lambda s: s ** k(s),
    )
    return Atlas(
        lambda eta: flat(-eta), flat, (scale, _in_logarithms(scale, "log scale"))
    )


def _in_logarithms(chart: Chart, name: str) -> Chart:
    """The chart of the logarithms of positive coordinates."""
    return Chart(
        name,
        lambda x: chart.to_natural(jnp.exp(x)),
        lambda eta: jnp.log(chart.from_natural(eta)),
    )

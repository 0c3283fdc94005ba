"""The Fisher-Rao distance: the length of the shortest curve in the Fisher metric.

Closed forms (each factor of a product adds its square):

    Normal       √2 arcosh(1 + ((m − m')²/2 + (s − s')²)/(2 s s')), curvature −1/2
    Categorical  2 arccos Σ √(p p'), curvature 1/4
    Bernoulli    2 |arcsin √p − arcsin √p'|
    Poisson      2 |√λ − √λ'|
    Exponential  |log r/r'|

written so that near points do not cancel; `LogNormal`, `Binomial`, `Geometric`,
`NegativeBinomial` and `Weibull` have such forms too (in the files of their charts). For
normal vectors with a known mean or covariance see `distance_normal`. Other families go
by geodesic shooting in an unconstrained chart.

Source: Rao (1945), Information and the accuracy attainable in the estimation of
statistical parameters; Atkinson & Mitchell (1981), Rao's distance measure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from natgrad import families
from natgrad.geometry.charts import Chart, charts
from natgrad.geometry.domain import unconstrained
from natgrad.geometry.geodesics import STEPS, logarithm
from natgrad.geometry.information import norm
from natgrad.geometry.points import Point, expected, same_family
from natgrad.typing import Array

# (family, η, η') -> the distance of each factor
Formula = Callable[[Any, Array, Array], Array]
_CLOSED_FORMS: dict[type, Formula] = {}


def register_distance(cls: type) -> Callable[[Formula], Formula]:
    """Registers the closed form of the distance of a class of families, as a decorator.

    Args:
        cls: the class of families; its subclasses use the same form.

    Returns:
        A decorator of a function (family, η, η') -> the distance of each factor.
    """

    def keep(formula: Formula) -> Formula:
        _CLOSED_FORMS[cls] = formula
        return formula

    return keep


def distance(start: Point, end: Point) -> Float[Array, ""]:
    """The Fisher-Rao distance of two laws of a family.

    It takes the closed form where there is one, else `shooting_distance`, which is NaN
    where it finds no geodesic. Its derivative at coinciding points, where there is
    none, is 0.

    Args:
        start: a law, in any chart.
        end: a law of the same family, in any chart.

    Returns:
        The distance, shape (): the length of the shortest curve in the metric F.

    Raises:
        ValueError: the points are of different families.
    """
    expected(Point, start, "distance")
    same_family(start, end)
    for cls in type(start.family).__mro__:
        if cls in _CLOSED_FORMS:
            factors = _CLOSED_FORMS[cls](start.family, start.natural, end.natural)
            return root(jnp.sum(factors**2))
    return shooting_distance(start, end)


def shooting_distance(
    start: Point, end: Point, *, steps: int = STEPS
) -> Float[Array, ""]:
    """The length of the geodesic that is found by shooting.

    Args:
        start: a law, in any chart; unconstrained coordinates are kept.
        end: a law of the same family, in any chart.
        steps: of the integrator.

    Returns:
        The length, shape (); NaN where no geodesic is found.
    """
    chart = best_chart(start)
    start, end = start.to(chart), end.to(chart)
    v, residual = logarithm(start, end, steps=steps)
    scale = 1 + jnp.linalg.norm(end.coordinates.ravel())
    found = residual <= jnp.sqrt(jnp.finfo(residual.dtype).eps) * scale
    return jnp.where(found, norm(v), jnp.nan)


def best_chart(point: Point) -> Chart:
    """The chart in which geodesics from a point are best integrated.

    Args:
        point: a law.

    Returns:
        The point's chart if it is unconstrained, else the first source chart that is,
        else the natural chart.
    """
    known = charts(point.family)
    sources = [c for c in known.values() if c.name not in ("natural", "expectation")]
    for chart in (point.chart, *sources):
        x = point.to(chart).coordinates
        if chart.gauge is None and unconstrained(chart, x):
            return chart
    return known["natural"]


def root(squared: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """The square root, with the derivative 0 at 0.

    Args:
        squared: numbers of at least 0.

    Returns:
        √squared; 0 where the number is not positive.
    """
    positive = squared > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, squared, 1)), 0)


@register_distance(families.Normal)
def normal_distance(family: families.Normal, eta: Array, eta2: Array) -> Array:
    """√2 arcosh(1 + ((m − m')²/2 + (s − s')²)/(2 s s')), also of transformed laws."""
    del family
    v, v2 = -0.5 / eta[..., 1], -0.5 / eta2[..., 1]
    s, s2 = jnp.sqrt(v), jnp.sqrt(v2)
    means, scales = eta[..., 0] * v - eta2[..., 0] * v2, s - s2
    chord = (means**2 / 2 + scales**2) / (4 * s * s2)
    return jnp.sqrt(8.0).astype(eta.dtype) * jnp.arcsinh(root(chord))


@register_distance(families.Categorical)
def _categorical(family: families.Categorical, eta: Array, eta2: Array) -> Array:
    gaps = jnp.sqrt(family.mean(eta)) - jnp.sqrt(family.mean(eta2))
    return 4 * jnp.arcsin(root(jnp.sum(gaps**2, axis=-1)) / 2)


@register_distance(families.Bernoulli)
def bernoulli_distance(family: families.Bernoulli, eta: Array, eta2: Array) -> Array:
    """2 (arcsin √p − arcsin √p'), by the logits."""
    del family
    return 2 * jnp.arctan(jnp.sinh((eta - eta2) / 4) / jnp.cosh((eta + eta2) / 4))


@register_distance(families.Poisson)
def _poisson(family: families.Poisson, eta: Array, eta2: Array) -> Array:
    del family
    return 4 * jnp.exp((eta + eta2) / 4) * jnp.sinh((eta - eta2) / 4)


@register_distance(families.Exponential)
def exponential_distance(
    family: families.Exponential, eta: Array, eta2: Array
) -> Array:
    """log η/η'."""
    del family
    return jnp.log1p((eta - eta2) / eta2)

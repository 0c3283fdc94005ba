"""The Fisher-Rao distance: the length of the shortest curve in the Fisher metric.

Closed forms (each factor of a product adds its square):

    Normal       √2 arcosh(1 + ((m − m')²/2 + (s − s')²)/(2 s s')), curvature −1/2
    Categorical  2 arccos Σ √(p p'), curvature 1/4
    Bernoulli    2 |arcsin √p − arcsin √p'|
    Poisson      2 |√λ − √λ'|
    Exponential  |log r/r'|

written so that near points do not cancel; `LogNormal`, `Binomial`, `Geometric`,
`NegativeBinomial` and `Weibull` have such forms too, in `distance_closed_forms`. For
normal vectors with a known mean or covariance see `distance_normal`. Other families go
by geodesic shooting in an unconstrained chart.

Source: Rao (1945), Information and the accuracy attainable in the estimation of
statistical parameters; Atkinson & Mitchell (1981), Rao's distance measure.
"""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Float

from natgrad.geometry.atlases import Chart, charts
from natgrad.geometry.distance_closed_forms import CLOSED_FORMS, root
from natgrad.geometry.domain import unconstrained
from natgrad.geometry.geodesics import STEPS, logarithm
from natgrad.geometry.information import norm
from natgrad.geometry.points import Point
from natgrad.geometry.validation import expected, same_family
from natgrad.typing import Array


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
        if cls in CLOSED_FORMS:
            factors = CLOSED_FORMS[cls](start.family, start.natural, end.natural)
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

    Raises:
        ValueError: the points are of different families, or `steps` is no integer of
            at least 1.
    """
    expected(Point, start, "where a geodesic starts")
    same_family(start, end)
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

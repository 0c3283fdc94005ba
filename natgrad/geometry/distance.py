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

from natgrad.geometry.charts import Chart, charts
from natgrad.geometry.distance_closed_forms import CLOSED_FORMS, root
from natgrad.geometry.domain import unconstrained
from natgrad.geometry.geodesics import STEPS, logarithm
from natgrad.geometry.information import norm
from natgrad.geometry.points import Point, expected, same_family
from natgrad.typing import Array


def distance(start: Point, end: Point) -> Array:
    """The Fisher-Rao distance of two laws of a family, shape ().

    By the closed form where there is one, else by `shooting_distance`, which is NaN
    where it finds no geodesic. Its derivative at coinciding points, where there is
    none, is 0.

    Args:
        start: in any chart.
        end: of the same family, in any chart.

    Raises:
        ValueError: for points of different families.
    """
    expected(Point, start, "distance")
    same_family(start, end)
    for cls in type(start.family).__mro__:
        if cls in CLOSED_FORMS:
            factors = CLOSED_FORMS[cls](start.family, start.natural, end.natural)
            return root(jnp.sum(factors**2))
    return shooting_distance(start, end)


def shooting_distance(start: Point, end: Point, *, steps: int = STEPS) -> Array:
    """The length of the geodesic found by shooting, shape (); NaN where none is found.

    Args:
        start: in any chart; a point with unconstrained coordinates keeps its chart.
        end: in any chart.
        steps: of the integrator.
    """
    chart = best_chart(start)
    start, end = start.to(chart), end.to(chart)
    v, residual = logarithm(start, end, steps=steps)
    scale = 1 + jnp.linalg.norm(end.coordinates.ravel())
    found = residual <= jnp.sqrt(jnp.finfo(residual.dtype).eps) * scale
    return jnp.where(found, norm(v), jnp.nan)


def best_chart(point: Point) -> Chart:
    """The point's chart if it is unconstrained, else the first source that is."""
    known = charts(point.family)
    sources = [c for c in known.values() if c.name not in ("natural", "expectation")]
    for chart in (point.chart, *sources):
        x = point.to(chart).coordinates
        if chart.gauge is None and unconstrained(chart, x):
            return chart
    return known["natural"]

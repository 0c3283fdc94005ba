"""The families as manifolds: points, and what is known of them without the library.

A new exponential family is one entry of MANIFOLDS; `fisher` and `inside` are the closed
form of the Fisher information in its source chart, and exact tests of the domains.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from mpmath import mp
from scipy.special import polygamma

import natgrad.families as nf
from natgrad import geometry


class Manifold(NamedTuple):
    """One exponential family.

    Attributes:
        family: it.
        chart: the source chart of the points.
        points: coordinates; the first two are p and q of the tests of pairs.
        fisher: F in that chart, by the books.
        inside: chart name -> whether coordinates (exact numbers) are in its domain.
    """

    family: Any
    chart: str
    points: tuple
    fisher: Callable
    inside: dict[str, Callable]


def everywhere(x) -> bool:
    return all(np.isfinite(float(value)) for value in np.ravel(x))


def positive(x) -> bool:
    return everywhere(x) and all(value > 0 for value in np.ravel(x))


def negative(x) -> bool:
    return positive(-np.asarray(x))


def unit(x) -> bool:
    return positive(x) and all(value < 1 for value in np.ravel(x))


def exact(x):
    return [Fraction(float(value)) for value in np.ravel(x)]


def gamma_means(x):
    mean_log, mean = (mp.mpf(float(value)) for value in x)
    with mp.workdps(40):
        return positive(x[1]) and bool(mp.log(mean) > mean_log)


def gamma_fisher(x):
    a, b = x
    return np.array([[polygamma(1, a), -1 / b], [-1 / b, a / b**2]])


MANIFOLDS = {
    "bernoulli": Manifold(
        nf.Bernoulli(),
        "probability",
        (0.3, 0.6, 0.02),
        lambda p: 1 / (p * (1 - p)),
        {"natural": everywhere, "expectation": unit, "probability": unit},
    ),
    "categorical": Manifold(
        nf.Categorical(3),
        "probability",
        ((0.2, 0.3), (0.5, 0.4), (0.01, 0.9)),
        lambda p: np.diag(1 / p) + 1 / (1 - p.sum()),
        {
            "natural": everywhere,
            "expectation": positive,
            "log odds": everywhere,
            "probability": lambda p: positive(p) and sum(exact(p)) < 1,
        },
    ),
    "poisson": Manifold(
        nf.Poisson(),
        "rate",
        (2.0, 5.0, 0.1),
        lambda rate: 1 / rate,
        {"natural": everywhere, "expectation": positive, "rate": positive},
    ),
    "exponential": Manifold(
        nf.Exponential(),
        "rate",
        (2.0, 0.7, 30.0),
        lambda rate: 1 / rate**2,
        {
            "natural": negative,
            "expectation": positive,
            "rate": positive,
            "log rate": everywhere,
        },
    ),
    "gamma": Manifold(
        nf.Gamma(),
        "shape/rate",
        ((2.0, 3.0), (0.5, 1.0), (20.0, 0.2)),
        gamma_fisher,
        {
            "natural": lambda x: x[0] > -1 and x[1] < 0 and everywhere(x),
            "expectation": gamma_means,
            "shape/rate": positive,
            "log shape/log rate": everywhere,
            "shape/mean": positive,
        },
    ),
    "normal": Manifold(
        nf.Normal(),
        "mean/sd",
        ((0.3, 1.2), (1.0, 0.5), (-4.0, 0.3)),
        lambda x: np.diag([1, 2]) / x[1] ** 2,
        {
            "natural": lambda x: x[1] < 0 and everywhere(x),
            "expectation": lambda x: everywhere(x) and exact(x)[1] > exact(x)[0] ** 2,
            "mean/sd": lambda x: x[1] > 0 and everywhere(x),
            "mean/variance": lambda x: x[1] > 0 and everywhere(x),
            "mean/log sd": everywhere,
        },
    ),
}
NAMES = list(MANIFOLDS)
CHARTS = [(name, chart) for name in NAMES for chart in MANIFOLDS[name].inside]


def coordinates(name, index=0, dtype=None):
    """The source coordinates of a point of the table."""
    return jnp.asarray(MANIFOLDS[name].points[index], dtype or jnp.float64)


def law(name, index=0, chart=None):
    """A point of a manifold of the table, in its own chart or another."""
    manifold = MANIFOLDS[name]
    p = geometry.Point(manifold.family, manifold.chart, coordinates(name, index))
    return p if chart is None else p.to(chart)


def normal(mean, sd, chart="mean/sd"):
    """A normal law."""
    return geometry.Point(nf.Normal(), "mean/sd", jnp.array([mean, sd])).to(chart)

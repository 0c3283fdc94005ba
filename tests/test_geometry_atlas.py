"""The charts of all families: information by the books, domains that are kept."""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import ive, polygamma

import natgrad.families as nf
from natgrad import geometry as ng


def trigamma(x):
    return polygamma(1, x)


def gamma_like(sign):
    """Of (shape, rate) or (shape, scale)."""
    return lambda x: np.array(
        [[trigamma(x[0]), sign / x[1]], [sign / x[1], x[0] / x[1] ** 2]]
    )


def von_mises(x):
    """diag(κ R, 1 − R/κ − R²), R = I₁/I₀, for (direction, κ)."""
    kappa = x[1]
    r = ive(1, kappa) / ive(0, kappa)
    return np.diag([kappa * r, 1 - r / kappa - r**2])


def multivariate(x):
    """S⁻¹ and ½ Dᵀ(S⁻¹ ⊗ S⁻¹)D for (m, vech S), D the duplication matrix."""
    d = 2
    place = np.array([[0, 1], [1, 2]])
    inverse = np.linalg.inv(x[d:][place])
    duplication = np.eye(3)[place.ravel()]
    second = duplication.T @ np.kron(inverse, inverse) @ duplication / 2
    return np.block([[inverse, np.zeros((2, 3))], [np.zeros((3, 2)), second]])


class Law(NamedTuple):
    """A family, a point of a source chart, and F there by the books."""

    family: nf.ExponentialFamily
    chart: str
    point: tuple | float
    fisher: object


LAWS = {
    "binomial": Law(nf.Binomial(7), "probability", 0.3, lambda p: 7 / (p * (1 - p))),
    "geometric": Law(
        nf.Geometric(), "probability", 0.3, lambda p: 1 / (p**2 * (1 - p))
    ),
    "negative_binomial": Law(
        nf.NegativeBinomial(2.5), "probability", 0.3, lambda p: 2.5 / (p**2 * (1 - p))
    ),
    "weibull": Law(nf.Weibull(1.7), "scale", 1.3, lambda s: 1.7**2 / s**2),
    "inverse_gamma": Law(nf.InverseGamma(), "shape/scale", (2.5, 1.3), gamma_like(-1)),
    "inverse_gaussian": Law(
        nf.InverseGaussian(),
        "mean/shape",
        (1.3, 0.8),
        lambda x: np.diag([x[1] / x[0] ** 3, 0.5 / x[1] ** 2]),
    ),
    "beta": Law(
        nf.Beta(),
        "concentration",
        (2.0, 0.7),
        lambda a: np.diag(trigamma(a)) - trigamma(a.sum()),
    ),
    "dirichlet": Law(
        nf.Dirichlet(),
        "concentration",
        (2.0, 0.7, 4.0),
        lambda a: np.diag(trigamma(a)) - trigamma(a.sum()),
    ),
    "log_normal": Law(
        nf.LogNormal(), "mean/sd", (0.3, 1.2), lambda x: np.diag([1, 2]) / x[1] ** 2
    ),
    "von_mises": Law(nf.VonMises(), "direction/concentration", (0.4, 1.7), von_mises),
    "multivariate_normal_diag": Law(
        nf.MultivariateNormalDiag(),
        "mean/sd",
        (0.3, -1.0, 1.2, 0.5),
        lambda x: np.diag([1, 1, 2, 2] / np.tile(x[2:], 2) ** 2),
    ),
    "multivariate_normal": Law(
        nf.MultivariateNormal(),
        "mean/covariance",
        (0.3, -1, 1.5, 0.4, 0.8),
        multivariate,
    ),
    "product": Law(
        nf.Product((nf.Normal(), nf.Bernoulli()), (2, 1)),
        "natural",
        (0.3, -0.5, 0.4),
        lambda z: np.block(
            [
                [nf.Normal().fisher(jnp.asarray(z[:2])), np.zeros((2, 1))],
                [np.zeros((1, 2)), nf.Bernoulli().fisher(jnp.asarray(z[2:]))],
            ]
        ),
    ),
    "transformed": Law(
        nf.Transformed(nf.Normal(), jnp.exp, jnp.log),
        "mean/sd",
        (0.3, 1.2),
        lambda x: np.diag([1, 2]) / x[1] ** 2,
    ),
}


def law(name, dtype=jnp.float64):
    family, chart, x, _ = LAWS[name]
    return ng.Point(family, chart, jnp.asarray(x, dtype))


@pytest.mark.parametrize("name", LAWS)
def test_information_in_the_source_chart_is_that_of_the_books(name):
    p = law(name)
    actual = np.asarray(jax.jit(ng.fisher)(p))
    expected = np.reshape(LAWS[name].fisher(np.asarray(p.coordinates)), actual.shape)
    np.testing.assert_allclose(actual, expected, 1e-9, 1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_all_charts_agree(name):
    report = ng.check.charts_agree(law(name)).raise_if_failed()
    assert len(report.checks) == 2 * len(ng.charts(LAWS[name].family)) + 1


BOUNDED = [
    (name, chart)
    for name in LAWS
    for chart, known in ng.charts(LAWS[name].family).items()
    if known.margins is not ng.whole_space
]


@functools.cache
def directions(size):
    """Random directions of random length, [200, size], and step sizes to 1e6."""
    rng = np.random.default_rng(size)
    lengths = 10 ** rng.uniform(-4, 4, (200, size))
    signs = rng.choice([-1, 0, 1], (200, size))
    return signs * lengths, 10 ** rng.uniform(-3, 6, 200)


@pytest.mark.parametrize(("name", "chart"), BOUNDED)
def test_no_step_leaves_the_domain_in_single_precision(name, chart):
    p = law(name, jnp.float32).to(chart)
    ds, hs = (jnp.asarray(a, jnp.float32) for a in directions(p.coordinates.size))

    @jax.jit
    @jax.vmap
    def steps(d, h):
        v = p.tangent(d.reshape(p.coordinates.shape))
        end = ng.retract(v, h)
        return end.coordinates, end.natural, (p.coordinates + h * v.components)

    ends, naturals, straight = (np.asarray(a) for a in steps(ds, hs))
    assert ends.dtype == np.float32
    assert np.all(np.isfinite(ends))
    exact = ng.charts(p.family)[chart].margins
    inside = jax.jit(jax.vmap(lambda x: jnp.all(exact(x) > 0)))
    assert np.mean(~inside(straight.astype(np.float64))) > 0.1
    assert not np.any(np.isnan(naturals))  # NaN is what is outside of the family
    assert np.all(inside(ends.astype(np.float64)))


DISTANCES = {
    "binomial": lambda a, b: 2 * np.sqrt(7) * (np.arcsin(a**0.5) - np.arcsin(b**0.5)),
    "geometric": lambda a, b: (
        2 * (np.arctanh((1 - a) ** 0.5) - np.arctanh((1 - b) ** 0.5))
    ),
    "negative_binomial": lambda a, b: (
        2 * np.sqrt(2.5) * (np.arctanh((1 - a) ** 0.5) - np.arctanh((1 - b) ** 0.5))
    ),
    "weibull": lambda a, b: 1.7 * np.log(a / b),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_are_the_closed_forms(name):
    p, q = law(name), law(name).at(jnp.asarray(0.7))
    expected = abs(DISTANCES[name](LAWS[name].point, 0.7))
    np.testing.assert_allclose(ng.distance(p, q), expected, 1e-12)

"""Geodesics and Fisher-Rao distances, against closed forms and other integrators."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifolds import MANIFOLDS, NAMES, coordinates
from mpmath import mp
from scipy.integrate import solve_bvp
from scipy.special import polygamma

import natgrad.families as nf
from natgrad import geometry as ng


@pytest.fixture(autouse=True)
def forty_digits():
    with mp.workdps(40):
        yield


def law(name, x, chart=None, dtype=jnp.float64):
    manifold = MANIFOLDS[name]
    return ng.Point(manifold.family, chart or manifold.chart, jnp.asarray(x, dtype))


def normal_distance(a, b):
    (m, s), (m2, s2) = (map(mp.mpf, x) for x in (a, b))
    chord = ((m - m2) ** 2 / 2 + (s - s2) ** 2) / (2 * s * s2)
    return mp.sqrt(2) * mp.acosh(1 + chord)


def categorical_distance(a, b):
    p, q = ([*map(mp.mpf, x), 1 - mp.fsum(map(mp.mpf, x))] for x in (a, b))
    return 2 * mp.acos(mp.fsum(mp.sqrt(x * y) for x, y in zip(p, q, strict=True)))


# The table of closed forms, in the source chart of MANIFOLDS.
CLOSED = {
    "normal": normal_distance,
    "categorical": categorical_distance,
    "bernoulli": lambda a, b: abs(mp.asin(mp.sqrt(a)) - mp.asin(mp.sqrt(b))) * 2,
    "poisson": lambda a, b: 2 * abs(mp.sqrt(a) - mp.sqrt(b)),
    "exponential": lambda a, b: abs(mp.log(mp.mpf(a) / b)),
}
NEAR = {
    "normal": ((0.3, 1.2), (0.3 + 1e-8, 1.2 + 1e-8)),
    "categorical": ((0.2, 0.3), (0.2 + 1e-8, 0.3)),
    "bernoulli": (0.3, 0.3 + 1e-8),
    "poisson": (2.0, 2.0 + 1e-8),
    "exponential": (2.0, 2.0 + 1e-8),
}


@functools.cache
def distance(name):
    manifold = MANIFOLDS[name]
    at = lambda x: ng.Point(manifold.family, manifold.chart, x)
    return jax.jit(lambda x, y: ng.distance(at(x), at(y)))


@functools.cache
def by_shooting(name):
    manifold = MANIFOLDS[name]
    at = lambda x: ng.Point(manifold.family, manifold.chart, x)
    return jax.jit(jax.vmap(lambda x, y: ng.shooting_distance(at(x), at(y))))


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("pair", [(0, 1), (2, 0), (1, 2)])
def test_distances_are_the_closed_forms(name, pair):
    a, b = (MANIFOLDS[name].points[i] for i in pair)
    actual = distance(name)(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(float(actual), float(CLOSED[name](a, b)), 1e-12)


@pytest.mark.parametrize("name", CLOSED)
def test_distances_of_near_points_do_not_cancel(name):
    """To what the source coordinates themselves allow: 1e-16 in 1e-8."""
    a, b = NEAR[name]
    actual = distance(name)(jnp.asarray(a), jnp.asarray(b))
    np.testing.assert_allclose(float(actual), float(CLOSED[name](a, b)), 1e-7)
    assert distance(name)(jnp.asarray(a), jnp.asarray(a)) < 1e-15


@pytest.mark.parametrize("name", ["normal", "categorical", "exponential"])
def test_the_solver_agrees_with_the_closed_forms(name):
    """Batched by vmap, in an unconstrained chart."""
    starts = jnp.stack([coordinates(name, i) for i in (0, 1, 2)])
    ends = jnp.stack([coordinates(name, i) for i in (1, 2, 0)])
    expected = jax.vmap(distance(name))(starts, ends)
    np.testing.assert_allclose(by_shooting(name)(starts, ends), expected, 1e-8)


def gamma_by_scipy(a, b):
    """The geodesic of diag(ψ'(a) − 1/a, a) in (a, log of the mean), by solve_bvp."""
    chart = lambda x: np.array([x[0], np.log(x[0] / x[1])])
    start, end = chart(a), chart(b)
    metric = lambda a: (polygamma(1, a) - 1 / a, a)
    slope = lambda a: (polygamma(2, a) + 1 / a**2, np.ones_like(a))

    def velocity(_, state):
        x, _, x_dot, y_dot = state
        (e, g), (de, dg) = metric(x), slope(x)
        x_bent = -(de * x_dot**2 - dg * y_dot**2) / (2 * e)
        return np.stack([x_dot, y_dot, x_bent, -dg / g * x_dot * y_dot])

    ends = lambda u, v: np.concatenate([u[:2] - start, v[:2] - end])
    t = np.linspace(0, 1, 50)
    straight = np.outer(start, 1 - t) + np.outer(end, t)
    guess = np.concatenate([straight, np.outer(end - start, np.ones_like(t))])
    found = solve_bvp(velocity, ends, t, guess, tol=1e-10, max_nodes=50_000)
    assert found.success
    x, _, x_dot, y_dot = found.sol(0.0)
    e, g = metric(x)
    return np.sqrt(e * x_dot**2 + g * y_dot**2)


def test_gamma_distances_against_an_independent_integrator():
    starts = [(2.0, 3.0), (2.0, 3.0), (0.5, 1.0), (5.8, 5.1)]
    ends = [(0.5, 1.0), (20.0, 0.2), (3.0, 10.0), (14.0, 0.4)]
    actual = by_shooting("gamma")(jnp.asarray(starts), jnp.asarray(ends))
    expected = [gamma_by_scipy(a, b) for a, b in zip(starts, ends, strict=True)]
    np.testing.assert_allclose(actual, expected, 1e-8)
    backwards = by_shooting("gamma")(jnp.asarray(ends), jnp.asarray(starts))
    np.testing.assert_allclose(backwards, actual, 1e-8)


def test_far_distances_of_normal_laws_are_the_closed_form():
    """Where shooting at the end itself finds nothing, or a longer way."""
    starts = jnp.array([[-15.5, 0.15], [6.5, 6.1], [-3.3, 0.3]])
    ends = jnp.array([[4.2, 4.6], [-6.9, 0.1], [4.7, 0.1]])
    expected = jax.vmap(distance("normal"))(starts, ends)
    np.testing.assert_allclose(by_shooting("normal")(starts, ends), expected, 1e-8)


def test_a_distance_that_is_not_found_is_nan():
    """The ends are too far apart for this many steps, which is not hidden."""
    p, q = law("normal", (0.0, 1.0)), law("normal", (1e6, 1.0))
    assert np.isnan(jax.jit(lambda p, q: ng.shooting_distance(p, q, steps=2))(p, q))


def test_distances_are_differentiable():
    """Through the solver, implicitly: against central differences."""
    manifold = MANIFOLDS["normal"]
    end = ng.Point(manifold.family, manifold.chart, coordinates("normal", 1))
    length = lambda x: ng.shooting_distance(end.at(x), end)
    report = ng.check.derivatives(length, coordinates("normal"), tolerance=1e-6)
    report.raise_if_failed()


def test_derivatives_of_closed_forms_are_finite_where_points_meet():
    x = jnp.array([0.3, 1.2])
    g = jax.grad(distance("normal"))(x, x)
    assert np.all(np.isfinite(g))


@pytest.mark.parametrize("alpha", [1.0, -1.0])
def test_integrated_e_and_m_geodesics_are_straight_in_their_charts(alpha):
    """In mean/log sd, where neither is: the integrator against the closed form."""
    chart = {1.0: "natural", -1.0: "expectation"}[alpha]
    v = (
        law("normal", (0.3, 1.2), "mean/sd")
        .to("mean/log sd")
        .tangent(jnp.array([0.4, -0.1]))
    )
    straight = v.to(chart)
    expected = straight.point.at(straight.point.coordinates + straight.components)
    actual = jax.jit(lambda v: ng.exponential(v, alpha).to(chart).coordinates)(v)
    np.testing.assert_allclose(actual, expected.coordinates, 1e-10)


def test_e_and_m_geodesics_join_their_ends():
    p, q = (law("normal", x) for x in ((0.3, 1.2), (1.0, 0.5)))
    for geodesic, chart in ((ng.e_geodesic, "natural"), (ng.m_geodesic, "expectation")):
        ends = [geodesic(p, q, t).coordinates for t in (0.0, 1.0)]
        np.testing.assert_allclose(ends, [p.coordinates, q.coordinates], 1e-12)
        middle = geodesic(p, q, 0.25).to(chart).coordinates
        expected = 0.75 * p.to(chart).coordinates + 0.25 * q.to(chart).coordinates
        np.testing.assert_allclose(middle, expected, 1e-12)


def test_exponential_and_logarithm_are_inverse_and_speed_is_constant():
    p = law("gamma", (2.0, 3.0)).to("log shape/log rate")
    v = p.tangent(jnp.array([1.0, 0.4]))

    @jax.jit
    def there_and_back(v):
        end = ng.transported(v)
        found, residual = ng.logarithm(v.point, end.point)
        return found.components, residual, ng.norm(v), ng.norm(end)

    components, residual, speed, final = there_and_back(v)
    np.testing.assert_allclose(components, v.components, 1e-9)
    np.testing.assert_allclose(final, speed, 1e-10)
    assert residual < 1e-10


def test_the_integrator_is_of_order_eight():
    p = law("normal", (0.3, 1.2)).to("mean/log sd")
    v = p.tangent(jnp.array([1.5, 0.7]))
    end = jax.jit(lambda v: ng.exponential(v, steps=64).coordinates)(v)
    coarse, fine = (
        jax.jit(lambda v, n=n: ng.exponential(v, steps=n).coordinates)(v)
        for n in (2, 4)
    )
    ratio = np.max(np.abs(coarse - end)) / np.max(np.abs(fine - end))
    assert 2**7 < ratio < 2**10


def test_normal_geodesics_are_half_ellipses():
    """(m − c)²/2 + s² is constant along a geodesic of the normal law."""
    p = law("normal", (0.3, 1.2)).to("mean/log sd")
    v = jnp.array([1.0, 0.3])
    end = lambda t: ng.exponential(p.tangent(t * v)).to("mean/sd").coordinates
    ends = jax.jit(jax.vmap(end))(jnp.linspace(0, 2, 7))
    m, s = np.asarray(ends).T
    # m²/2 + s² = c m + const: a linear law that all points satisfy
    design = np.stack([m, np.ones_like(m)], axis=1)
    _, rest, _, _ = np.linalg.lstsq(design, m**2 / 2 + s**2)
    assert rest < 1e-18


def test_float32_distances():
    for name in NAMES:
        x, y = (coordinates(name, i, jnp.float32) for i in (0, 1))
        if name in CLOSED:
            d = distance(name)(x, y)
            assert d.dtype == jnp.float32
            expected = CLOSED[name](*MANIFOLDS[name].points[:2])
            np.testing.assert_allclose(float(d), float(expected), 1e-5)


def test_factors_of_a_product_add_their_squares():
    x, y = jnp.array([[0.3, 1.2], [0.0, 1.0]]), jnp.array([[1.0, 0.5], [2.0, 1.0]])
    family = nf.Normal()
    at = lambda x: ng.Point(family, "mean/sd", x)
    both = ng.distance(at(x), at(y))
    each = [ng.distance(at(a), at(b)) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(both, np.linalg.norm(each), 1e-12)

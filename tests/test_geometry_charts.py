"""Charts: the Fisher information in each, and types that are never mixed up."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifolds import CHARTS, MANIFOLDS, NAMES, coordinates

import natgrad.families as nf
from natgrad import geometry as ng


def point(name, index=0, chart=None):
    """A point of the table, in its source chart or another."""
    manifold = MANIFOLDS[name]
    p = ng.Point(manifold.family, manifold.chart, coordinates(name, index))
    return p if chart is None else p.to(chart)


@functools.cache
def fisher_in(name, chart):
    """(F, coordinates) of a source point in a chart, compiled once."""

    def compute(p):
        p = p.to(chart)
        return ng.fisher(p), p.coordinates

    return jax.jit(compute)


def matrix(tensor):
    return np.asarray(tensor).reshape(2 * (round(tensor.size**0.5),))


@pytest.mark.parametrize("name", NAMES)
def test_every_known_chart_is_in_the_table(name):
    assert set(ng.charts(MANIFOLDS[name].family)) == set(MANIFOLDS[name].inside)


@pytest.mark.parametrize(("name", "chart"), CHARTS)
@pytest.mark.parametrize("index", [0, 2])
def test_fisher_is_the_pull_back_of_the_closed_form(name, chart, index, tolerance):
    manifold = MANIFOLDS[name]
    source = point(name, index)
    actual, x = fisher_in(name, chart)(source)
    back = lambda x: ng.Point(manifold.family, chart, x).to(manifold.chart).coordinates
    j = np.asarray(jax.jacfwd(back)(x)).reshape(source.coordinates.size, -1)
    closed = np.reshape(
        manifold.fisher(np.asarray(source.coordinates)), 2 * j.shape[:1]
    )
    expected = j.T @ closed @ j
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    error = np.max(np.abs(matrix(actual) - expected) / scale)
    assert error < tolerance("identity")


@pytest.mark.parametrize("name", NAMES)
def test_charts_agree(name):
    ng.check.charts_agree(point(name)).raise_if_failed()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "categorical"])
def test_expectation_information_is_the_inverse_of_the_natural(name, tolerance):
    natural, mean = (
        matrix(fisher_in(name, chart)(point(name))[0])
        for chart in ("natural", "expectation")
    )
    np.testing.assert_allclose(mean, np.linalg.inv(natural), tolerance("identity"))


def test_the_categorical_informations_are_inverses_on_the_simplex():
    natural, mean = (
        matrix(fisher_in("categorical", chart)(point("categorical"))[0])
        for chart in ("natural", "expectation")
    )
    v = np.array([[1.0, -1.0, 0.0], [0.5, 0.5, -1.0]])  # tangents of the simplex
    np.testing.assert_allclose(v @ mean @ natural @ mean @ v.T, v @ mean @ v.T, 1e-12)


def test_normal_information_in_natural_and_expectation_charts():
    """[[v, 2mv], [2mv, 2v² + 4m²v]] and its inverse."""
    m, v = 0.3, 1.44
    closed = np.array([[v, 2 * m * v], [2 * m * v, 2 * v**2 + 4 * m**2 * v]])
    for chart, expected in (
        ("natural", closed),
        ("expectation", np.linalg.inv(closed)),
    ):
        np.testing.assert_allclose(
            matrix(fisher_in("normal", chart)(point("normal"))[0]), expected, 1e-12
        )


def test_tangents_move_by_the_jacobian_and_covectors_by_its_transpose():
    """(m, s) -> (m, m² + s²), by hand."""
    p = point("normal")
    m, s = p.coordinates
    j = np.array([[1, 0], [2 * m, 2 * s]])
    v = p.tangent(jnp.array([0.7, -0.2])).to("expectation")
    np.testing.assert_allclose(v.components, j @ [0.7, -0.2], 1e-12)
    g = v.point.covector(jnp.array([0.4, 1.5])).to("mean/sd")
    np.testing.assert_allclose(g.components, j.T @ [0.4, 1.5], 1e-12)
    np.testing.assert_allclose(v.point.coordinates, [m, m**2 + s**2], 1e-12)


def test_a_users_chart_is_a_chart():
    cube = ng.Chart("cube root", lambda x: x**3, jnp.cbrt)
    p = ng.Point(nf.Bernoulli(), cube, jnp.array(0.9))
    probability = p.to("probability").coordinates
    np.testing.assert_allclose(probability, 1 / (1 + np.exp(-(0.9**3))), 1e-12)
    expected = probability * (1 - probability) * (3 * 0.9**2) ** 2
    np.testing.assert_allclose(ng.fisher(p), expected, 1e-12)
    ng.check.charts_agree(p).raise_if_failed()


def test_a_gradient_is_the_natural_gradient_after_sharp(tolerance):
    """Of the mean negative log-likelihood the natural gradient in μ is μ − T̄."""
    p = point("gamma", chart="expectation")
    y = jnp.array([0.5, 1.0, 2.5])
    loss = lambda q: -jnp.mean(jax.vmap(q.log_prob)(y))
    target = jnp.stack([jnp.mean(jnp.log(y)), jnp.mean(y)])
    v = jax.jit(lambda p: ng.natural_gradient(loss, p))(p)
    np.testing.assert_allclose(
        v.components, p.coordinates - target, tolerance("identity")
    )


def test_points_pass_through_jit_vmap_and_grad():
    p = point("normal")
    many = jax.vmap(lambda s: p.at(jnp.stack([0.0, s])))(jnp.array([0.5, 1.0, 2.0]))
    assert many.coordinates.shape == (3, 2)
    kls = jax.jit(jax.vmap(lambda q: q.kl(p)))(many)
    s = np.array([0.5, 1.0, 2.0])
    expected = np.log(1.2 / s) + (s**2 + 0.3**2) / (2 * 1.2**2) - 0.5
    np.testing.assert_allclose(kls, expected, 1e-12)
    g = jax.grad(lambda q: q.kl(p))(p.at(jnp.array([0.0, 0.5])))
    np.testing.assert_allclose(
        g.coordinates, [-0.3 / 1.44, -1 / 0.5 + 0.5 / 1.44], 1e-12
    )
    leaves, structure = jax.tree.flatten(p.tangent(jnp.ones(2)))
    assert len(leaves) == 2
    assert jax.tree.unflatten(structure, leaves).point.chart is p.chart


def test_float32_stays_float32():
    p = ng.Point(nf.Normal(), "mean/sd", jnp.array([0.3, 1.2], jnp.float32))

    def of(p):
        v = ng.natural_gradient(lambda q: q.kl(p), p.to("expectation"))
        return v, v.to("natural"), ng.retract(v, 1e6), ng.fisher(p)

    leaves = jax.tree.leaves(jax.eval_shape(of, p))
    assert len(leaves) == 6
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype(jnp.float32)}


P, Q = point("normal"), point("normal", 1, "natural")
V = P.tangent(jnp.ones(2))
W = point("normal", 1).tangent(jnp.ones(2))  # elsewhere in the same chart
MIXED = {
    "tangent for a covector": (lambda: ng.sharp(V), "a Tangent was given", "Covector"),
    "covector for a tangent": (lambda: ng.retract(ng.flat(V)), "Covector", "Tangent"),
    "array for a tangent": (lambda: ng.retract(jnp.ones(2)), "was given", "Tangent"),
    "array for a point": (lambda: ng.fisher(jnp.ones(2)), "was given", "Point"),
    "point plus tangent": (lambda: P + V, "Tangent was added", "retract"),
    "array plus point": (lambda: 1.0 - P, "was added to a Point", "retract"),
    "tangent plus covector": (lambda: V + ng.flat(V), "Covector was given", "Tangent"),
    "two charts": (lambda: ng.inner(V, V.to("natural")), "'natural'", "'mean/sd'"),
    "sum in two charts": (lambda: V + V.to("natural"), "'natural'", "'mean/sd'"),
    "logarithm": (lambda: ng.logarithm(P, Q), "'natural' was given", "'mean/sd'"),
    "covector of elsewhere": (
        lambda: ng.flat(V)(V.to("natural")),
        "natural",
        "mean/sd",
    ),
    "two points": (lambda: ng.inner(V, W), "two points", "at one point"),
    "sum at two points": (lambda: ng.flat(V) + ng.flat(W), "two points", "one point"),
    "covector at another point": (lambda: ng.flat(V)(W), "two points", "one point"),
    "shooting at a family": (
        lambda: ng.shooting_distance(P, point("gamma")),
        "Gamma",
        "expected one of Normal",
    ),
    "no steps": (lambda: ng.exponential(V, steps=0), "steps", ">= 1, got 0"),
    "half a step": (lambda: ng.transported(V, steps=2.5), "steps", ">= 1, got 2.5"),
    "a negative radius": (lambda: ng.trust_region_step(V, -1.0), "nats", "got -1.0"),
    "no quadratic radius": (
        lambda: ng.quadratic_trust_region_step(V, 0.0),
        "positive",
        "got 0.0",
    ),
    "two connections": (
        lambda: ng.christoffel(P, jnp.ones(2)),
        "alpha must be a scalar",
        "(2,)",
    ),
    "two families": (lambda: P.kl(point("gamma")), "Gamma", "expected one of Normal"),
    "unknown chart": (lambda: P.to("polar"), "'polar' was given", "'mean/log sd'"),
    "not a family": (lambda: ng.charts(nf.NormalMean()), "NormalMean", "Exponential"),
    "integers": (lambda: P.at(jnp.array([0, 1])), "int64", "floating"),
    "components": (lambda: P.tangent(jnp.ones(3)), "(3,)", "(2,)"),
}


@pytest.mark.parametrize("what", MIXED)
def test_mixing_is_an_error_that_says_what_was_given_and_wanted(what):
    act, given, wanted = MIXED[what]
    words = f"(?s){re.escape(given)}.*{re.escape(wanted)}"
    with pytest.raises(ValueError, match=words):
        act()


def test_an_unknown_domain_is_named_before_a_step_is_taken():
    class Other(type(nf.Poisson())):
        """A Poisson law the geometry inherits: known through its base."""

    assert "rate" in ng.charts(Other())

    class Unknown(nf.ExponentialFamily):
        log_normalizer = nf.Poisson.log_normalizer
        sufficient_statistics = nf.Poisson.sufficient_statistics
        log_base_measure = nf.Poisson.log_base_measure
        natural = nf.Poisson.natural
        sample = nf.Poisson.sample

    p = ng.Point(Unknown(), "natural", jnp.array(0.5))
    np.testing.assert_allclose(ng.fisher(p), np.exp(0.5), 1e-12)
    with pytest.raises(ValueError, match="give it with geometry"):
        ng.retract(p.tangent(jnp.array(1.0)))

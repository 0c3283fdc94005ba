"""Steps: exercises by hand, one-step identities, orders, trust regions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifolds import NAMES, law, normal

import natgrad.families as nf
from natgrad import geometry as ng

GOAL = normal(1.0, 0.5)
FAR = normal(-1.0, 1.5)


def to_goal(q):
    return q.kl(GOAL)


# By hand -----------------------------------------------------------------------------


def test_bernoulli_by_hand():
    """∇_η L = p − ȳ and ∇_p L = (p − ȳ)/(p(1 − p)) for the mean label ȳ."""
    y_bar, h, p = 0.8, 0.3, 0.3
    logit = np.log(p / (1 - p))
    loss = lambda q: -(y_bar * q.log_prob(1) + (1 - y_bar) * q.log_prob(0))

    @jax.jit
    def found(q):
        in_logit = q.to("natural")
        steps = [ng.natural_step(loss, q, h).coordinates for q in (q, in_logit)]
        return *steps, ng.gradient(loss, in_logit).components

    q = ng.Point(nf.Bernoulli(), "probability", jnp.array(p))
    in_p, in_logit, gradient = found(q)
    np.testing.assert_allclose(in_p, p - h * (p - y_bar), 1e-12)
    np.testing.assert_allclose(in_logit, logit - h * (p - y_bar) / (p * (1 - p)), 1e-12)
    np.testing.assert_allclose(gradient, p - y_bar)


@pytest.mark.parametrize("name", NAMES)
def test_the_fisher_information_cancels(name):
    """η' = η − h F⁻¹ ∇_η L = η − h ∇_μ L: no matrix is left."""
    p, q = law(name, chart="natural"), law(name, 1)
    loss = lambda r: q.kl(r)

    @jax.jit
    def both(p):
        covector = ng.gradient(loss, p.to("expectation")).components
        return ng.natural_step(loss, p, 0.1).coordinates, p.coordinates - 0.1 * covector

    actual, expected = (np.ravel(x) for x in both(p))
    if name == "categorical":  # η is determined up to a constant
        actual, expected = actual - actual.mean(), expected - expected.mean()
    np.testing.assert_allclose(actual, expected, 1e-11, 1e-12)


def test_gaussian_mean_and_its_reparameterisation():
    """F = 1/s²: the step in m is m − h (m − x̄), and in m = t³ it is that over 3t²."""
    y, s, h = jnp.array([0.5, 2.0, 2.9]), 0.7, 0.2

    def at(chart):
        return ng.Chart(
            "mean of known scale",
            lambda x: jnp.stack([chart(x), jnp.full_like(x, -0.5)]),
            lambda eta: None,
        )

    # One coordinate in a family of two: F is the pull-back all the same.
    scaled = lambda m: m / s
    loss = lambda q: -jnp.mean(jax.vmap(q.log_prob)(y / s))
    m = jnp.array(1.3)
    p = ng.Point(nf.Normal(), at(scaled), m)
    np.testing.assert_allclose(ng.fisher(p), 1 / s**2, 1e-12)
    step = ng.natural_step(loss, p, h).coordinates
    np.testing.assert_allclose(step, m - h * (m - y.mean()), 1e-12)
    t = jnp.cbrt(m)
    p = ng.Point(nf.Normal(), at(lambda t: scaled(t**3)), t)
    step = ng.natural_step(loss, p, h).coordinates
    np.testing.assert_allclose(step, t - h * (m - y.mean()) / (3 * t**2), 1e-12)


# One step and the flow ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_one_step_in_the_mean_lands_on_the_maximum_of_likelihood(name):
    """L = −⟨η, T̄⟩ + A(η): μ' = T̄ for h = 1."""
    p, mle = law(name, chart="expectation"), law(name, 1)
    statistics = mle.mean
    loss = lambda q: (
        q.family.log_normalizer(q.natural) - jnp.sum(q.natural * statistics)
    )
    step = jax.jit(lambda p: ng.natural_step(loss, p, 1.0).coordinates)
    np.testing.assert_allclose(step(p), statistics, 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_one_natural_step_lands_on_the_target_of_the_divergence(name):
    """L = KL(q ‖ p): η' = η_p for h = 1."""
    q, p = law(name, chart="natural"), law(name, 1)
    step = jax.jit(lambda q: ng.natural_step(lambda q: q.kl(p), q, 1.0).mean)
    np.testing.assert_allclose(step(q), p.mean, 1e-10)


@pytest.mark.parametrize(
    ("loss", "chart"), [(to_goal, "natural"), (GOAL.kl, "expectation")]
)
def test_flows_of_divergences_are_e_and_m_geodesics(loss, chart):
    """x(t) = x_p + e^−t (x_0 − x_p), in a chart where that is not straight."""
    start, time, n = normal(0.0, 0.9, "mean/log sd"), 0.7, 64
    flow = jax.jit(
        lambda p: jax.lax.fori_loop(
            0, n, lambda _, p: ng.flow_step(loss, p, time / n), p
        )
    )
    x0, x1 = (p.to(chart).coordinates for p in (start, GOAL))
    expected = x1 + np.exp(-time) * (x0 - x1)
    np.testing.assert_allclose(flow(start).to(chart).coordinates, expected, 1e-7)


# Orders ------------------------------------------------------------------------------

CHARTS = ["natural", "mean/sd", "mean/log sd", "mean/variance"]
ORDERS = {
    "natural_step": (ng.natural_step, (0.8, 1.2), (32, 64, 128)),
    "geodesic_step": (ng.geodesic_step, (1.75, 2.4), (64, 128, 256)),
    "flow_step": (ng.flow_step, (3.6, 4.6), (32, 64, 128)),
}


@pytest.mark.parametrize("step", ORDERS)
def test_the_spread_between_charts_falls_with_the_order_of_the_step(step):
    """KL(q ‖ N(1, 0.5²)) from N(−1, 1.5²), over time 1."""
    function, order, counts = ORDERS[step]
    report = ng.check.invariance_order(
        function, to_goal, FAR, CHARTS, order, counts=counts
    )
    print(report.raise_if_failed())


@pytest.mark.parametrize("step", ["natural_step", "geodesic_step"])
@pytest.mark.parametrize("chart", ["mean/sd", "natural"])
def test_affine_charts_agree_to_rounding(step, chart):
    report = ng.check.affine_exactness(ORDERS[step][0], to_goal, FAR.to(chart), 0.05)
    report.raise_if_failed()


def damped_step(loss, p, h, damping):
    """−h (F + D)⁻¹ ∇L, straight; D by `damping` from the point."""
    f, g = ng.fisher(p), ng.gradient(loss, p).components
    return p.at(p.coordinates - h * jnp.linalg.solve(f + damping(p), g))


def by_identity(p):
    return 0.1 * jnp.eye(2)


def by_metric(p):
    """0.1 times the pull-back of the identity of mean/sd: a tensor, unlike λI."""
    j = jax.jacfwd(lambda x: p.at(x).to("mean/sd").coordinates)(p.coordinates)
    return 0.1 * j.T @ j


@pytest.mark.parametrize(
    ("damping", "exact"), [(by_identity, False), (by_metric, True)]
)
def test_damping_by_identity_breaks_affine_invariance_and_by_a_metric_does_not(
    damping, exact
):
    step = lambda loss, p, h: damped_step(loss, p, h, damping)
    report = ng.check.affine_exactness(step, to_goal, FAR, 0.1)
    assert report.passed is exact
    if not exact:
        assert report.checks[0].value > 1e-3
        with pytest.raises(ValueError, match="difference of the steps"):
            report.raise_if_failed()


def test_the_geodesic_step_follows_the_geodesic_to_second_order():
    v = ng.natural_gradient(to_goal, FAR.to("mean/log sd")) * -0.1

    @jax.jit
    def error(h):
        exact = ng.exponential(v * h).coordinates
        curved = ng.geodesic_retract(v, h).coordinates
        straight = ng.retract(v, h).coordinates
        return jnp.stack(
            [jnp.linalg.norm(curved - exact), jnp.linalg.norm(straight - exact)]
        )

    ratios = np.log2(error(0.05) / error(0.025))
    np.testing.assert_allclose(ratios, [3, 2], atol=0.1)

"""Proximal and trust-region steps."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from manifolds import MANIFOLDS, coordinates, law, normal

import natgrad.families as nf
from natgrad import geometry as ng

GOAL = normal(1.0, 0.5)
FAR = normal(-1.0, 1.5)


def to_goal(q):
    return q.kl(GOAL)


def test_a_proximal_step_of_a_linear_loss_is_mirror_descent():
    """L = ⟨c, η⟩: argmin L + KL(p ‖ q)/h has μ' = μ − h c, exactly and implicitly."""
    p, c, h = normal(0.3, 1.2, "natural"), jnp.array([0.5, -0.2]), 0.4
    loss = lambda q: jnp.sum(c * q.natural)
    backwards = lambda q, p: p.kl(q)
    step = jax.jit(lambda p, h: ng.proximal_step(loss, p, h, backwards))
    q, residual = step(p, h)
    assert residual < 1e-12
    np.testing.assert_allclose(q.mean, p.mean - h * c, 1e-10)


def test_a_proximal_step_minimises_what_it_says():
    p = normal(0.3, 1.2, "mean/log sd")
    loss = lambda q: jnp.sin(q.mean[0]) + GOAL.kl(q)
    q, residual = jax.jit(lambda p: ng.proximal_step(loss, p, 0.5))(p)
    objective = jax.jit(
        jax.value_and_grad(lambda x: loss(p.at(x)) + p.at(x).kl(p) / 0.5)
    )
    found = scipy.optimize.minimize(
        lambda x: [np.asarray(a) for a in objective(x)],
        p.coordinates,
        jac=True,
        tol=1e-12,
    )
    assert residual < 1e-12
    np.testing.assert_allclose(q.coordinates, found.x, 1e-6)
    np.testing.assert_allclose(objective(q.coordinates)[0], found.fun, 1e-12)


@functools.cache
def trusted(name, chart):
    """x, radius -> the trust-region step of KL(· ‖ q) there."""
    q = law(name, 1)

    def step(x, radius):
        p = ng.Point(q.family, MANIFOLDS[name].chart, x).to(chart)
        v = -ng.natural_gradient(lambda r: r.kl(q), p)
        exact = ng.trust_region_step(v, radius)
        return exact, ng.quadratic_trust_region_step(v, radius)

    return jax.jit(step)


@pytest.mark.parametrize(
    ("name", "chart"),
    [
        ("bernoulli", "natural"),
        ("categorical", "expectation"),
        ("poisson", "natural"),
        ("exponential", "rate"),
        ("gamma", "natural"),
        ("normal", "expectation"),
    ],
)
@pytest.mark.parametrize("radius", [1e-6, 0.05])
def test_a_trust_region_step_has_exactly_the_divergence_asked_for(name, chart, radius):
    exact, quadratic = trusted(name, chart)(coordinates(name), radius)
    assert exact.reached
    np.testing.assert_allclose(exact.kl, radius, 1e-9)
    assert quadratic.kl != pytest.approx(radius, rel=1e-6)  # TRPO's is of second order
    np.testing.assert_allclose(quadratic.kl, radius, 20 * radius**0.5)


def test_failures_of_the_quadratic_model_with_their_numbers():
    """Bernoulli logit 0 → 6: ½ d F d = 4.5 and KL = 2.309; the normal scale 1 → 0.1."""
    p = ng.Point(nf.Bernoulli(), "natural", jnp.array(0.0))
    step = ng.quadratic_trust_region_step(p.tangent(jnp.array(1.0)), 4.5)
    np.testing.assert_allclose(step.length, 6, 1e-12)
    np.testing.assert_allclose(step.kl, 2.309, atol=5e-4)
    v = normal(0.0, 1.0).tangent(jnp.array([0.0, -1.0]))
    step = ng.quadratic_trust_region_step(v, 0.81)
    np.testing.assert_allclose(step.length, 0.9, 1e-12)
    np.testing.assert_allclose(step.kl, 47.2, atol=0.05)
    exact = ng.trust_region_step(v, 47.2)
    np.testing.assert_allclose(exact.length, 0.9, 1e-4)


def test_a_divergence_that_the_chart_cannot_reach_is_reported():
    p = ng.Point(nf.Bernoulli(), "probability", jnp.array(0.5))
    step = ng.trust_region_step(p.tangent(jnp.array(1.0)), 10.0)
    assert not step.reached
    assert 0.99 < step.point.coordinates < 1
    still = ng.trust_region_step(p.tangent(jnp.array(0.0)), 0.1)
    assert not still.reached
    assert still.point.coordinates == 0.5


@pytest.mark.parametrize(
    "step",
    [
        lambda v, h: ng.trust_region_step(v, h).point,
        ng.geodesic_retract,
        lambda v, h: ng.proximal_step(to_goal, v.point, h).point,
    ],
    ids=["trust_region", "geodesic", "proximal"],
)
def test_steps_are_differentiable(step):
    """In the start and in the radius or step size, against central differences."""

    def end(x):
        p = ng.Point(nf.Normal(), "mean/sd", x[:2]).to("natural")
        return step(-ng.natural_gradient(to_goal, p), x[2]).coordinates

    report = ng.check.derivatives(end, jnp.array([0.3, 1.2, 0.07]))
    report.raise_if_failed()

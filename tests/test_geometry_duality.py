"""Duality: the Legendre pair, orientations of the divergence, projections."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from manifolds import MANIFOLDS, NAMES, coordinates

from natgrad import geometry as ng


@functools.cache
def laws(name):
    """(p, q) of the table in their source chart."""
    manifold = MANIFOLDS[name]
    return tuple(
        ng.Point(manifold.family, manifold.chart, coordinates(name, i)) for i in (0, 1)
    )


@pytest.mark.parametrize("name", NAMES)
def test_duality_certificate(name):
    """KL − ½ dᵀFd is of third order, among the laws of `check.duality`."""
    p, q = laws(name)
    report = ng.check.duality(p, q).raise_if_failed()
    assert abs(report["order of KL − ½ dᵀFd"].value - 3) < 0.05


@pytest.mark.parametrize("name", NAMES)
def test_the_conjugate_is_the_supremum(name):
    """A*(μ) = sup ⟨η, μ⟩ − A(η), by scipy."""
    family, mu = MANIFOLDS[name].family, laws(name)[0].mean
    start = np.ravel(laws(name)[1].natural)
    negative = jax.jit(
        jax.value_and_grad(
            lambda eta: (
                family.log_normalizer(eta.reshape(mu.shape))
                - jnp.sum(eta.reshape(mu.shape) * mu)
            )
        )
    )
    found = scipy.optimize.minimize(
        lambda eta: [np.nan_to_num(a, nan=1e9) for a in negative(eta)],
        start,
        jac=True,
        tol=1e-12,
    )
    np.testing.assert_allclose(family.conjugate(mu), -found.fun, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_arguments_swap_between_the_two_divergences(name):
    """KL(p ‖ q) = D_A(η_q, η_p) = D_A*(μ_p, μ_q), and not the other way round."""
    p, q = laws(name)
    a, dual = ng.Potential(p.family), ng.Potential(p.family).dual

    def by_definition(potential, x, y):
        return potential(x) - potential(y) - jnp.sum((x - y) * potential.mean(y))

    kl, reverse = p.kl(q), q.kl(p)
    np.testing.assert_allclose(by_definition(a, q.natural, p.natural), kl, 1e-9)
    np.testing.assert_allclose(by_definition(dual, p.mean, q.mean), kl, 1e-9)
    np.testing.assert_allclose(a.bregman(q.natural, p.natural), kl, 1e-12)
    np.testing.assert_allclose(dual.bregman(p.mean, q.mean), kl, 1e-9)
    assert abs(reverse / kl - 1) > 1e-2
    assert dual.dual == a


def normal(mean, sd):
    return ng.Point(MANIFOLDS["normal"].family, "mean/sd", jnp.array([mean, sd]))


def test_m_projection_on_centred_normals_matches_the_second_moment():
    p, origin = normal(0.3, 1.2), normal(0.0, 1.0)
    second = jnp.array([[0.0, 1.0]])
    project = jax.jit(ng.m_projection)
    q, residual = project(p, origin, second)
    assert residual < 1e-12
    np.testing.assert_allclose(q.coordinates, [0, np.sqrt(0.09 + 1.44)], 1e-10, 1e-12)
    r = normal(0.0, 0.4)  # Pythagoras, for any law of the flat
    np.testing.assert_allclose(p.kl(r), p.kl(q) + q.kl(r), 1e-10)


def test_m_projection_on_a_curved_looking_flat_agrees_with_scipy():
    """{η₀ + a d}, far from the origin and up to the boundary of the domain."""
    p, origin = normal(3.0, 0.2), normal(0.0, 1.0)
    direction = jnp.array([[1.0, -0.5]])
    q, residual = jax.jit(ng.m_projection)(p, origin, direction)
    at = lambda a: ng.Point(p.family, "natural", origin.natural + a * direction[0])
    kl = jax.jit(lambda a: p.kl(at(a)))
    found = scipy.optimize.minimize_scalar(
        kl, bounds=(-0.99, 50), method="bounded", options={"xatol": 1e-12}
    )
    np.testing.assert_allclose(p.kl(q), found.fun, 1e-10)
    assert residual < 1e-9
    np.testing.assert_allclose(p.kl(origin), p.kl(q) + q.kl(origin), 1e-9)


def test_e_projection_on_fixed_means():
    """Of the laws with mean 1, the nearest in KL(· ‖ p) is e^{a y} p(y) normalised."""
    p, origin = normal(0.3, 1.2), normal(1.0, 0.7)
    q, residual = jax.jit(ng.e_projection)(p, origin, jnp.array([[0.0, 1.0]]))
    assert residual < 1e-12
    np.testing.assert_allclose(q.coordinates, [1.0, 1.2], 1e-10)
    np.testing.assert_allclose(origin.kl(p), origin.kl(q) + q.kl(p), 1e-10)


def test_pythagoras_fails_off_the_flat():
    p, q, r = normal(0.3, 1.2), normal(0.0, 1.0), normal(1.0, 0.4)
    assert abs(p.kl(r) - p.kl(q) - q.kl(r)) > 0.1


def test_projections_are_differentiable():
    """Of the second moment m² + s²: dq_s/dm = m/q_s, dq_s/ds = s/q_s."""
    origin = normal(0.0, 1.0)
    scale = lambda x: ng.m_projection(
        ng.Point(origin.family, "mean/sd", x), origin, jnp.array([[0.0, 1.0]])
    ).point.coordinates[1]
    x = jnp.array([0.3, 1.2])
    expected = x / jnp.sqrt(jnp.sum(x**2))
    for way in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(jax.jit(way(scale))(x), expected, 1e-10)


def test_directions_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(2,\).*expected \[K"):
        ng.m_projection(normal(0.0, 1.0), normal(0.0, 1.0), jnp.array([0.0, 1.0]))

"""Fisher-Rao distances of normal vectors and Beta laws, against scipy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import solve_bvp, solve_ivp
from scipy.linalg import logm, sqrtm
from scipy.spatial.distance import mahalanobis
from scipy.special import polygamma

import natgrad.families as nf
from natgrad import geometry as ng

FULL = nf.MultivariateNormal()
M, S = np.array([0.3, -1.0]), np.array([[1.2, 0.4], [0.4, 0.7]])
M2, S2 = np.array([1.5, 0.2]), np.array([[0.5, -0.3], [-0.3, 1.9]])


def law(m, s):
    eta = FULL.from_mean_and_covariance(jnp.asarray(m), jnp.asarray(s))
    return ng.Point(FULL, "natural", eta)


def test_the_distance_of_two_covariances_is_the_norm_of_the_matrix_logarithm():
    half = np.linalg.inv(sqrtm(S))
    expected = np.linalg.norm(logm(half @ S2 @ half)) / np.sqrt(2)
    found = jax.jit(ng.known_mean_distance)
    np.testing.assert_allclose(found(law(M, S), law(M, S2)), expected, 1e-12)
    np.testing.assert_allclose(found(law(M, S2), law(M2, S)), expected, 1e-12)


def test_the_distance_of_two_means_is_that_of_mahalanobis():
    expected = mahalanobis(M, M2, np.linalg.inv(S))
    found = ng.known_covariance_distance(law(M, S), law(M2, S))
    np.testing.assert_allclose(found, expected, 1e-12)


def test_near_covariances_do_not_cancel_and_equal_ones_have_a_derivative():
    """S(1 + e) is √(d/2) log(1 + e) away."""
    away = lambda e: ng.known_mean_distance(law(M, S), law(M, S * (1 + e)))
    np.testing.assert_allclose(jax.jit(away)(1e-7), np.log1p(1e-7), 1e-6)
    assert np.isfinite(jax.grad(away)(0.0))
    np.testing.assert_allclose(jax.grad(away)(0.5), 1 / 1.5, 1e-10)


def test_other_families_are_refused():
    p = ng.Point(nf.Normal(), "mean/sd", jnp.array([0.0, 1.0]))
    for find in (ng.known_mean_distance, ng.known_covariance_distance):
        with pytest.raises(ValueError, match="expected one law of MultivariateNormal"):
            find(p, p)


def beta_by_scipy(start, end):
    """The geodesic in (a, b): the acceleration is −F⁻¹T(v, v)/2, by polygammas."""

    def metric(x):
        (a, b), both = x, polygamma(1, x.sum(0))
        return polygamma(1, a) - both, -both, polygamma(1, b) - both

    def velocity(_, state):
        x, v = state[:2], state[2:]
        e, f, g = metric(x)
        shared = polygamma(2, x.sum(0)) * v.sum(0) ** 2
        lowered = (polygamma(2, x) * v**2 - shared) / 2
        bent = np.stack(
            [g * lowered[0] - f * lowered[1], e * lowered[1] - f * lowered[0]]
        )
        return np.concatenate([v, -bent / (e * g - f**2)])

    ends = lambda u, v: np.concatenate([u[:2] - start, v[:2] - end])
    t = np.linspace(0, 1, 60)
    along = np.log(end / start)
    guess = start[:, None] * np.exp(np.outer(along, t))
    guess = np.concatenate([guess, along[:, None] * guess])
    found = solve_bvp(velocity, ends, t, guess, tol=1e-9, max_nodes=50_000)
    assert found.success
    x, v = found.sol(0.0)[:2], found.sol(0.0)[2:]
    e, f, g = metric(x)
    return np.sqrt(e * v[0] ** 2 + 2 * f * v[0] * v[1] + g * v[1] ** 2)


@pytest.mark.slow
def test_beta_distances_against_an_independent_integrator():
    starts = np.array([[2.0, 3.0], [0.5, 0.5]])
    ends = np.array([[5.0, 1.0], [3.0, 4.0]])
    at = lambda x: ng.Point(nf.Beta(), "natural", x - 1)
    find = jax.jit(jax.vmap(lambda x, y: ng.shooting_distance(at(x), at(y))))
    expected = [beta_by_scipy(a, b) for a, b in zip(starts, ends, strict=True)]
    np.testing.assert_allclose(find(starts, ends), expected, 1e-8)


@pytest.mark.slow
def test_the_distance_of_normal_vectors_is_the_length_of_scipys_geodesic():
    """m'' = S' S⁻¹ m' and S'' = S' S⁻¹ S' − m' m'ᵀ (Skovgaard 1984), by DOP853."""
    velocity, turn = np.array([0.5, -0.4]), np.array([[0.5, 0.3], [0.3, -0.2]])

    def motion(_, y):
        s, dm, ds = y[2:6].reshape(2, 2), y[6:8], y[8:].reshape(2, 2)
        along = ds @ np.linalg.inv(s)
        return np.concatenate(
            [y[6:], along @ dm, (along @ ds - np.outer(dm, dm)).ravel()]
        )

    start = np.concatenate([M, S.ravel(), velocity, turn.ravel()])
    path = solve_ivp(motion, (0, 1), start, "DOP853", rtol=1e-12, atol=1e-12)
    end = path.y[:, -1]
    inverse = np.linalg.inv(S)
    square = (
        velocity @ inverse @ velocity
        + np.trace((inverse @ turn) @ (inverse @ turn)) / 2
    )
    find = jax.jit(lambda p, q: ng.shooting_distance(p, q, steps=16))
    found = find(law(M, S), law(end[:2], end[2:6].reshape(2, 2)))
    np.testing.assert_allclose(found, np.sqrt(square), 1e-8)

"""Families built from others or from T, h and A: they agree with those made by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import gammaln
from jax.test_util import check_grads

import natgrad.families as nf

GAMMA = nf.exponential_family(
    lambda y: jnp.stack([jnp.log(y), y]),
    lambda y: jnp.zeros(()),
    lambda eta: gammaln(eta[0] + 1) - (eta[0] + 1) * jnp.log(-eta[1]),
    start=jnp.array([0.0, -1.0]),
    sample=lambda key, eta: jax.random.gamma(key, eta[0] + 1) / -eta[1],
    samples=2048,
)
# The logarithmic series law: y = 1, 2, … with probability −θ^y/(y log(1 − θ)).
SERIES = nf.exponential_family(
    lambda y: y,
    lambda y: -jnp.log(y),
    lambda eta: jnp.log(-jnp.log1p(-jnp.exp(eta))),
    start=jnp.array(-1.0),
    parameter_ndim=0,
)
Z = jnp.array([[1.3, -0.7], [0.2, -3.0], [30.0, -0.1], [-0.9, -50.0]])


def run(function, *arguments):
    return jax.jit(function)(*arguments)


@pytest.mark.parametrize("which", ["mean", "fisher", "log_normalizer", "conjugate"])
def test_what_is_derived_is_that_of_the_family_made_by_hand(which, tolerance):
    ours, theirs = GAMMA, nf.Gamma()
    arguments = Z if which != "conjugate" else run(jax.vmap(theirs.mean), Z)
    actual = run(jax.vmap(getattr(ours, which)), arguments)
    expected = run(jax.vmap(getattr(theirs, which)), arguments)
    np.testing.assert_allclose(actual, expected, 1e-8, 1e-9)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_derived_divergence_is_accurate_far_and_near(dtype):
    z = Z.astype(dtype)
    rtol = {"float32": 1e-4, "float64": 1e-8}[dtype]
    divergence = jax.jit(jax.vmap(GAMMA.kl))
    expected = jax.jit(jax.vmap(nf.Gamma().kl))
    for size in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        z2 = (z + size * jnp.array([[0.3, -0.4]], dtype) * (jnp.abs(z) * 0.3)).astype(
            dtype
        )
        actual = divergence(z, z2)
        assert np.all(actual >= 0)
        exact = expected(z.astype("float64"), z2.astype("float64"))
        np.testing.assert_allclose(actual, exact, rtol)
    np.testing.assert_array_equal(divergence(z, z), 0)


def test_natural_inverts_mean_from_afar_and_reports_failure():
    round_trip = jax.vmap(lambda z: GAMMA.natural(GAMMA.mean(z)))
    np.testing.assert_allclose(run(round_trip, Z), Z, 1e-8)
    outside = jnp.array([[0.7, 2.0], [0.0, -1.0], [np.log(2.0), 2.0]])
    natural = run(jax.vmap(GAMMA.natural), outside)
    assert np.all(np.any(np.isnan(natural), axis=1))
    # The mean of the series' law is at least 1.
    eta = jnp.array([-20.0, -1.0, -1e-3])
    mean = -jnp.exp(eta) / (-jnp.expm1(eta) * jnp.log1p(-jnp.exp(eta)))
    np.testing.assert_allclose(run(SERIES.natural, mean), eta, 1e-6)
    assert np.all(np.isnan(run(SERIES.natural, jnp.array([0.5, 1.0]))))


@pytest.mark.slow
def test_natural_is_differentiable_twice():
    mu = run(GAMMA.mean, Z[0])
    jacobian = run(jax.jacrev(GAMMA.natural), mu)
    fisher = run(nf.Gamma().fisher, Z[0])
    np.testing.assert_allclose(jacobian @ fisher, np.eye(2), atol=1e-9)
    natural = jax.jit(lambda mu: jnp.sum(jnp.sin(GAMMA.natural(mu))))
    check_grads(natural, (mu,), order=2, modes=("rev",), rtol=1e-4, atol=1e-4)


def test_estimates_of_a_derived_family_are_within_five_standard_errors():
    z = Z[0]
    ys, weights = run(GAMMA.score_nodes, z)
    scores = np.asarray(run(jax.vmap(GAMMA.score, (None, 0)), z, ys))
    products = np.einsum("ni,nj->nij", scores, scores)
    error = products.std(0) / np.sqrt(len(weights))
    assert np.all(np.abs(products.mean(0) - run(nf.Gamma().fisher, z)) < 5 * error)
    assert "estimated from 2048 samples" in GAMMA.provenance["score_nodes"]
    np.testing.assert_allclose(
        run(GAMMA.log_prob, z, ys[0]), run(nf.Gamma().log_prob, z, ys[0]), 1e-10
    )
    np.testing.assert_allclose(
        run(GAMMA.entropy, z), run(nf.Gamma().entropy, z), 1e-9, 1e-9
    )
    assert run(GAMMA.in_support, Z[:2], jnp.array([1.0, -1.0])).tolist() == [
        True,
        False,
    ]


def test_further_axes_of_a_derived_family_are_factors():
    family, theirs = GAMMA, nf.Gamma()
    z = Z[:, None]
    y = run(family.sample, jax.random.PRNGKey(0), z)
    assert y.shape == (4, 1)
    np.testing.assert_allclose(
        run(family.log_prob, z, y), run(theirs.log_prob, z, y), 1e-10
    )
    np.testing.assert_allclose(run(family.kl, z, z[::-1]), run(theirs.kl, z, z[::-1]))
    np.testing.assert_allclose(run(family.mean, z), run(theirs.mean, z), 1e-10)


CUBE = nf.Transformed(nf.Logistic(), lambda x: x**3, jnp.cbrt)
LOG_NORMAL = nf.Transformed(nf.Normal(), jnp.exp, jnp.log)


@pytest.mark.parametrize("given", [None, lambda y: -jnp.log(y)])
def test_the_log_normal_law_is_the_image_of_the_normal_law(given, tolerance):
    image = nf.Transformed(nf.Normal(), jnp.exp, jnp.log, given)
    ours = nf.LogNormal()
    z = jnp.array([[0.4, -0.8], [3.0, -2.0]])
    key, rtol = jax.random.PRNGKey(0), tolerance("identity")
    y = run(ours.sample, key, z)
    np.testing.assert_allclose(run(image.sample, key, z), y, rtol)
    for method, arguments in (
        ("log_prob", (z, y)),
        ("score", (z, y)),
        ("kl", (z, z[::-1])),
        ("fisher", (z,)),
        ("mean", (z,)),
        ("log_normalizer", (z,)),
        ("sufficient_statistics", (y,)),
        ("log_base_measure", (y,)),
    ):
        actual = run(getattr(image, method), *arguments)
        expected = run(getattr(ours, method), *arguments)
        np.testing.assert_allclose(actual, expected, rtol, 1e-12, err_msg=method)
    assert isinstance(image, nf.ExponentialFamily)
    labels = jnp.array([1.0, -1.0])
    assert run(image.in_support, z, labels).tolist() == [True, False]


def test_a_transformed_density_integrates_to_one():
    z = jnp.array([0.3, -0.5])
    assert not isinstance(CUBE, nf.ExponentialFamily)
    # In u = y^{1/3} the density is smooth: dy = 3u² du.
    u = jnp.linspace(-25.0, 26.0, 4001)
    log_p = run(jax.vmap(CUBE.log_prob, (None, 0)), z, u**3)
    mass = jnp.sum(jnp.where(u == 0, 0, jnp.exp(log_p) * 3 * u**2)) * (u[1] - u[0])
    np.testing.assert_allclose(mass, 1, 1e-8)


def test_a_vector_label_is_mapped_by_its_jacobian():
    matrix = jnp.array([[2.0, 1.0], [0.5, 3.0]])
    inverse = jnp.linalg.inv(matrix)
    family = nf.MultivariateNormal()
    image = nf.Transformed(family, lambda x: matrix @ x, lambda y: inverse @ y)
    mean, covariance = jnp.array([0.4, -1.0]), jnp.array([[1.3, 0.5], [0.5, 0.8]])
    z = run(family.from_mean_and_covariance, mean, covariance)
    moved = run(
        family.from_mean_and_covariance, matrix @ mean, matrix @ covariance @ matrix.T
    )
    ys = run(image.sample, jax.random.PRNGKey(0), jnp.stack([z, z]))
    np.testing.assert_allclose(
        run(image.log_prob, jnp.stack([z, z]), ys),
        run(family.log_prob, jnp.stack([moved, moved]), ys),
        1e-10,
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: nf.exponential_family(None, abs, abs),
            "sufficient_statistics is None",
        ),
        (lambda: nf.exponential_family(abs, abs, 3), "log_normalizer is 3"),
        (
            lambda: nf.exponential_family(abs, abs, abs, samples=0),
            "samples is 0; expected an integer of at least 1",
        ),
        (lambda: SERIES.sample(None, jnp.array(-1.0)), "sample is None"),
        (lambda: GAMMA.natural(jnp.ones(3)), r"start has shape \(2,\)"),
        (lambda: nf.Transformed(3, jnp.exp, jnp.log), "family is 3"),
        (lambda: nf.Transformed(nf.Normal(), jnp.exp, None), "inverse is None"),
    ],
)
def test_an_error_says_what_was_given_and_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()

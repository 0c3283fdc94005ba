"""Families of the user's own: what is derived is right, and says how it was derived."""

from __future__ import annotations

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad.families as nf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import numpyro.distributions as numpyro

LOG2 = np.log(2.0)
Z = jnp.array([0.3, -0.4])
Z2 = jnp.array([0.5, -0.2])


def laplace_log_prob(z, y):
    return -jnp.abs(y - z[0]) * jnp.exp(-z[1]) - z[1] - LOG2


def laplace_sample(key, z):
    return z[0] + jnp.exp(z[1]) * jax.random.laplace(key, dtype=z.dtype)


@dataclasses.dataclass(frozen=True)
class Laplace(nf.Family):
    """The least a user writes."""

    def log_prob(self, z, y):
        return laplace_log_prob(z, y)

    def sample(self, key, z):
        return laplace_sample(key, z)


LAPLACES = {
    "subclass": Laplace(),
    "functions": nf.from_log_prob(laplace_log_prob, laplace_sample),
    "numpyro": nf.from_distribution(lambda z: numpyro.Laplace(z[0], jnp.exp(z[1]))),
}


def run(function, *arguments):
    """Compiled, since what is derived here is many small operations."""
    return jax.jit(function)(*arguments)


def laplace_kl(z, z2):
    scale, scale2, distance = np.exp(z[1]), np.exp(z2[1]), abs(z[0] - z2[0])
    near = (scale * np.exp(-distance / scale) + distance) / scale2
    return z2[1] - z[1] + near - 1


def standard_errors(family, z, z2):
    """Of the estimates of the divergence and of the Fisher information."""
    ys, _ = run(family.score_nodes, z)
    log_ratios = run(
        jax.vmap(lambda y: family.log_prob(z2, y) - family.log_prob(z, y)), ys
    )
    scores = run(jax.vmap(lambda y: family.score(z, y)), ys)
    products = scores[:, :, None] * scores[:, None, :]
    root = np.sqrt(ys.shape[0])
    return jnp.std(jnp.expm1(log_ratios) - log_ratios) / root, jnp.std(
        products, 0
    ) / root


@pytest.mark.parametrize("how", LAPLACES)
def test_the_estimates_are_within_five_standard_errors(how):
    family = LAPLACES[how]
    of_kl, of_fisher = standard_errors(family, Z, Z2)
    assert abs(run(family.kl, Z, Z2) - laplace_kl(Z, Z2)) < 5 * of_kl < 0.1
    expected = np.diag([np.exp(-2 * Z[1]), 1.0])
    assert jnp.all(jnp.abs(run(family.fisher, Z) - expected) <= 5 * of_fisher + 1e-6)
    assert jnp.max(of_fisher) < 0.5


def test_the_estimate_is_the_divergence_of_the_first_law_from_the_second():
    family = nf.from_log_prob(laplace_log_prob, laplace_sample, samples=4096)
    narrow = jnp.array([0.6, -1.2])
    of_kl, _ = standard_errors(family, Z, narrow)
    estimate = run(family.kl, Z, narrow)
    assert abs(estimate - laplace_kl(Z, narrow)) < 5 * of_kl
    assert abs(estimate - laplace_kl(narrow, Z)) > 5 * of_kl


@pytest.mark.parametrize("how", LAPLACES)
def test_the_estimated_definitions_of_the_information_agree(how, tolerance):
    family = LAPLACES[how]
    ys, weights = run(family.score_nodes, Z)
    scores = run(jax.vmap(lambda y: family.score(Z, y)), ys)
    products = jnp.einsum("k,ki,kj->ij", weights, scores, scores)
    np.testing.assert_allclose(run(family.fisher, Z), products, tolerance("identity"))
    assert jnp.all(jnp.linalg.eigvalsh(run(family.fisher, Z)) > 0)


def test_an_estimated_divergence_is_positive_however_near_the_points():
    family, z = LAPLACES["functions"], Z.astype(jnp.float32)
    assert run(family.kl, z, z) == 0
    for step in (1e-1, 1e-2, 1e-3):
        z2 = z + jnp.float32(step)
        quadratic = 0.5 * step**2 * float(jnp.sum(run(family.fisher, z)))
        np.testing.assert_allclose(run(family.kl, z, z2), quadratic, 3 * step + 1e-3)


@pytest.mark.parametrize("how", LAPLACES)
def test_provenance_says_what_is_estimated(how):
    provenance = LAPLACES[how].provenance
    assert "estimated from 256 samples" in provenance["kl"]
    assert provenance["score_nodes"].endswith("estimated from 256 samples")
    assert "drawn for each example and step" in provenance["columns"]
    assert provenance["score"] == "autodiff of log_prob"
    assert "estimated from 256 samples" in provenance["fisher"]


def test_provenance_says_what_is_given():
    with_kl = nf.from_log_prob(laplace_log_prob, laplace_sample, kl=lambda z, z2: 0.0)
    assert with_kl.provenance["kl"] == "given"
    assert with_kl.provenance["fisher"] == "Hessian of kl"
    assert set(nf.Gamma().provenance.values()) == {"given"}
    few = nf.from_log_prob(laplace_log_prob, laplace_sample, samples=16)
    assert few.provenance["score_nodes"] == "estimated from 16 samples"
    assert few.score_nodes(Z)[1].shape == (16,)


def bernoulli(samples, **given):
    """A logit's law, whose information p(1 − p) has the derivative p(1 − p)(1 − 2p)."""
    return nf.from_log_prob(
        lambda z, y: y * z - jax.nn.softplus(z),
        lambda key, z: jax.random.bernoulli(key, jax.nn.sigmoid(z)).astype(z.dtype),
        parameter_ndim=0,
        samples=samples,
        **given,
    )


def test_the_derivative_of_an_estimated_information_is_not_that_of_its_summands():
    family, z = bernoulli(20_000), jnp.array(0.7)
    p = jax.nn.sigmoid(z)
    ys, _ = run(family.score_nodes, z)
    # The derivative of w s² with w' = w s: s³ + 2 s s', and s' = −p(1 − p).
    summands = (ys - p) ** 3 - 2 * (ys - p) * p * (1 - p)
    error = jnp.std(summands) / np.sqrt(ys.size)
    actual = run(jax.grad(family.fisher), z)
    assert abs(actual - p * (1 - p) * (1 - 2 * p)) < 5 * error
    assert abs(p * (1 - p) * (1 - 2 * p)) > 10 * error
    np.testing.assert_allclose(actual, jnp.mean(summands), 1e-9)


def test_a_given_divergence_is_used():
    family = bernoulli(8, kl=nf.Bernoulli().kl)
    z, z2 = jnp.array([0.3, -1.0]), jnp.array([0.1, 2.0])
    np.testing.assert_allclose(
        run(family.kl, z, z2), run(nf.Bernoulli().kl, z, z2), 1e-12
    )
    np.testing.assert_allclose(
        run(family.fisher, z), run(nf.Bernoulli().fisher, z), 1e-12
    )


def test_further_axes_are_independent_factors_of_a_custom_family():
    family = nf.from_log_prob(laplace_log_prob, laplace_sample, parameter_ndim=1)
    z = jnp.stack([jnp.stack([Z, Z2, Z]), jnp.stack([Z2, Z2, Z2])])
    y = run(family.sample, jax.random.PRNGKey(0), z)
    assert y.shape == family.label_shape(z.shape) == (2, 3)
    assert len(set(np.asarray(y).ravel())) == 6
    expected = sum(laplace_log_prob(z[i, j], y[i, j]) for i in (0, 1) for j in range(3))
    np.testing.assert_allclose(run(family.log_prob, z, y), expected, 1e-12)
    assert run(family.score, z, y).shape == z.shape
    fisher = run(family.fisher, z).reshape(6, 2, 6, 2)
    apart = fisher * (1 - jnp.eye(6))[:, None, :, None]
    np.testing.assert_array_equal(apart, 0)
    assert jnp.all(jnp.einsum("iaia->ia", fisher) > 0)


def test_factors_of_a_subclass_have_separate_estimates():
    @dataclasses.dataclass(frozen=True)
    class Binary(nf.Family):
        parameter_ndim = 0

        def log_prob(self, z, y):
            return jnp.sum(y * z - jax.nn.softplus(z))

        def sample(self, key, z):
            return jax.random.bernoulli(key, jax.nn.sigmoid(z)).astype(z.dtype)

    z, z2 = jnp.full(50, 0.3), jnp.full(50, 0.8)
    exact = run(nf.Bernoulli().kl, z, z2)
    np.testing.assert_allclose(run(Binary().kl, z, z2), exact, 0.02)
    fisher = run(Binary().fisher, z[:3])
    np.testing.assert_array_equal(fisher - jnp.diag(jnp.diag(fisher)), 0)


class _ShapeFirst:
    def log_prob(self, y):
        return -(y**2)

    def sample(self, sample_shape=()):
        return jnp.zeros(sample_shape)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nf.from_log_prob(None, laplace_sample), "log_prob is None"),
        (lambda: nf.from_log_prob(laplace_log_prob, 3), "sample is 3"),
        (
            lambda: nf.from_log_prob(laplace_log_prob, laplace_sample, samples=0),
            "samples is 0; expected a positive integer",
        ),
        (
            lambda: nf.from_distribution(numpyro.Normal, parameter_ndim=-1),
            "parameter_ndim is -1",
        ),
        (
            lambda: nf.from_distribution(numpyro.Normal(0, 1)),
            "expected a function from z",
        ),
        (
            lambda: nf.from_distribution(lambda z: _ShapeFirst()).sample(None, Z),
            "_ShapeFirst.sample takes sample_shape",
        ),
        (
            lambda: nf.from_distribution(lambda z: z).log_prob(Z, Z),
            "no log_prob",
        ),
    ],
)
def test_an_error_says_what_was_given_and_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Densities, samples and factors of the families of the table in `laws`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import EXPONENTIAL, LAWS, NAMES
from scipy import stats
from test_families_laws import fisher_oracle

import natgrad.families as nf

SAMPLES = 4000


def labels(law, source, rng):
    """Labels of one law, across its bulk."""
    frozen = law.scipy(source)
    if law.family == nf.Dirichlet():
        ys = np.maximum(frozen.rvs(5, random_state=rng), 1e-100)
        return ys, frozen.logpdf(ys.T)
    if not hasattr(frozen, "ppf"):
        ys = frozen.rvs(5, random_state=rng)
        return ys, frozen.logpdf(ys)
    ys = frozen.ppf([0.03, 0.3, 0.5, 0.8, 0.97])
    discrete = isinstance(frozen.dist, stats.rv_discrete)
    return ys, frozen.logpmf(ys) if discrete else frozen.logpdf(ys)


@pytest.mark.parametrize("name", NAMES)
def test_log_prob_is_that_of_scipy(name, tolerance):
    law, rng = LAWS[name], np.random.default_rng(3)
    log_prob = jax.jit(jax.vmap(law.family.log_prob))
    for source, z in zip(law.sources, law.points, strict=True):
        ys, expected = labels(law, np.asarray(source, float), rng)
        inside = np.isfinite(expected)
        assert inside.any()
        zs = jnp.broadcast_to(jnp.asarray(z), (5, *z.shape))
        actual = np.asarray(log_prob(zs, jnp.asarray(ys)))
        atol = 1e-9 * max(1.0, np.abs(z).max())
        np.testing.assert_allclose(
            actual[inside], expected[inside], tolerance("oracle"), atol
        )


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_mean_and_the_covariance_of_the_law(name):
    family, z = LAWS[name].family, jnp.asarray(LAWS[name].points[0])

    @jax.jit
    def draw(keys):
        ys = jax.vmap(family.sample, (0, None))(keys, z)
        scores = jax.vmap(family.score, (None, 0))(z, ys).reshape(SAMPLES, -1)
        return ys, scores, jax.vmap(family.in_support, (None, 0))(z, ys)

    _, scores, inside = draw(jax.random.split(jax.random.PRNGKey(1), SAMPLES))
    scores = np.asarray(scores)
    products = np.einsum("ni,nj->nij", scores, scores).reshape(SAMPLES, -1)
    assert np.all(inside)
    fisher = fisher_oracle(name)[0].ravel()
    for values, mean in ((scores, 0.0), (products, fisher)):
        errors = values.std(0) / np.sqrt(SAMPLES)
        assert np.all(np.abs(values.mean(0) - mean) < 5 * errors + 1e-12)
        assert np.any(errors > 0)


@pytest.mark.parametrize("name", NAMES)
def test_further_axes_are_independent_factors(name, tolerance):
    family, z = LAWS[name].family, jnp.asarray(LAWS[name].points[:2])
    swapped = z[::-1]

    @jax.jit
    def together(key):
        y = family.sample(key, z)
        whole = family.log_prob(z, y), family.kl(z, swapped), family.score(z, y)
        each = (
            jax.vmap(family.log_prob)(z, y).sum(),
            jax.vmap(family.kl)(z, swapped).sum(),
            jax.vmap(family.score)(z, y),
        )
        more = (jnp.zeros(()), jnp.zeros(()))
        if name in EXPONENTIAL:
            roundtrip = family.natural(family.mean(z)) - z
            more = family.entropy(z) - jax.vmap(family.entropy)(z).sum(), roundtrip
        return y, whole, each, more, family.in_support(z, y)

    y, whole, each, (entropy, roundtrip), inside = together(jax.random.PRNGKey(2))
    for actual, expected in zip(whole, each, strict=True):
        np.testing.assert_allclose(actual, expected, tolerance("identity"), 1e-12)
    np.testing.assert_allclose(entropy, 0, atol=1e-10)
    np.testing.assert_allclose(roundtrip, 0, atol=1e-8)
    assert y.shape == family.label_shape(z.shape)
    assert inside.shape == (2,)
    assert np.all(inside)

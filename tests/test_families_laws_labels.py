"""Samples, factors, supports and precisions of every family of the table in `laws`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import EXPONENTIAL, LAWS, NAMES, each, ordinary, special

SAMPLES = 4000
every = each(NAMES)


@functools.cache
def computed(name):
    """Draws at one point, and two factors together and apart, by one program."""
    family, z = LAWS[name].family, ordinary(name)[:2]
    swapped = z[::-1]

    @jax.jit
    def program(keys, key):
        draws = jax.vmap(family.sample, (0, None))(keys, z[0])
        y = family.sample(key, z)
        out = {
            "scores": jax.vmap(family.score, (None, 0))(z[0], draws),
            "inside": jax.vmap(family.in_support, (None, 0))(z[0], draws),
            "together": {
                "log_prob": family.log_prob(z, y),
                "kl": family.kl(z, swapped),
                "score": family.score(z, y),
            },
            "apart": {
                "log_prob": jax.vmap(family.log_prob)(z, y).sum(),
                "kl": jax.vmap(family.kl)(z, swapped).sum(),
                "score": jax.vmap(family.score)(z, y),
            },
            "fisher": family.fisher(z),
            "label": y,
            "label inside": family.in_support(z, y),
            "supports": [
                jax.vmap(family.in_support, (None, 0))(z[0], jnp.array(labels, float))
                for labels in (LAWS[name].inside, LAWS[name].outside)
            ],
        }
        if name in EXPONENTIAL:
            out["roundtrip"] = family.natural(family.mean(z)) - z
            out["together"]["entropy"] = family.entropy(z)
            out["apart"]["entropy"] = jax.vmap(family.entropy)(z).sum()
        return out

    keys = jax.random.split(jax.random.PRNGKey(1), SAMPLES)
    return jax.device_get(program(keys, jax.random.PRNGKey(2)))


@every
def test_samples_have_the_mean_and_the_covariance_of_the_law(name):
    scores = computed(name)["scores"].reshape(SAMPLES, -1)
    products = np.einsum("ni,nj->nij", scores, scores).reshape(SAMPLES, -1)
    assert np.all(computed(name)["inside"])
    fisher = special(name, "fisher")[0].ravel()
    for values, mean in ((scores, 0.0), (products, fisher)):
        errors = values.std(0) / np.sqrt(SAMPLES)
        assert np.all(np.abs(values.mean(0) - mean) < 5 * errors + 1e-12)
        assert np.any(errors > 0)


@every
def test_further_axes_are_independent_factors(name, tolerance):
    values, z = computed(name), ordinary(name)[:2]
    for which, together in values["together"].items():
        apart = values["apart"][which]
        np.testing.assert_allclose(together, apart, tolerance("identity"), 1e-12)
    if name in EXPONENTIAL:
        np.testing.assert_allclose(values["roundtrip"], 0, atol=1e-8)
    assert values["label"].shape == LAWS[name].family.label_shape(z.shape)
    assert values["label inside"].shape == (2,)
    assert np.all(values["label inside"])
    blocks = values["fisher"].reshape(2, z[0].size, 2, z[0].size)
    for i, exact in enumerate(special(name, "fisher")[:2]):
        np.testing.assert_allclose(blocks[i, :, i], exact, tolerance("oracle"), 1e-12)
        np.testing.assert_array_equal(blocks[i, :, 1 - i], 0)


@every
def test_the_support_holds_the_labels_with_a_log_probability_and_no_others(name):
    inside, outside = computed(name)["supports"]
    assert np.all(inside)
    assert not np.any(outside)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every
def test_the_precision_of_the_outputs_is_that_of_z(name, dtype):
    family, key = LAWS[name].family, jax.random.PRNGKey(0)
    z = ordinary(name, dtype)[0]

    def results(z):
        y = family.sample(key, z)
        ys, weights = family.score_nodes(z)
        values = {"weights": weights, "fisher_product": family.fisher_product(z, z)}
        for labels in (y, y.astype(jnp.float64)):
            values[f"log_prob, {labels.dtype}"] = family.log_prob(z, labels)
            values[f"score, {labels.dtype}"] = family.score(z, labels)
        values |= {"kl": family.kl(z, z), "fisher": family.fisher(z)}
        if jnp.issubdtype(y.dtype, jnp.floating):
            values |= {"sample": y, "nodes": ys}
        if name in EXPONENTIAL:
            mu = family.mean(z)
            values |= {"mean": mu, "natural": family.natural(mu)}
            values |= {"conjugate": family.conjugate(mu), "A": family.log_normalizer(z)}
            values |= {"bregman": family.bregman(z, z), "entropy": family.entropy(z)}
        return values

    dtypes = {which: str(a.dtype) for which, a in jax.eval_shape(results, z).items()}
    assert dtypes == dict.fromkeys(dtypes, dtype)

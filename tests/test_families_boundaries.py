"""The inverse of the mean at the boundaries of its domain, in single precision.

Other quantities there are tested by `test_families_far`.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import EXPONENTIAL, LAWS, ordinary, parameters, special

import natgrad.families as nf

# A categorical law has the same mean for all shifts of its logits.
EDGES = [name for name in EXPONENTIAL if name != "categorical"]


def edges(name):
    return parameters(name, special(name, "z", "float32"), "float32")


@functools.cache
def inverses(name):
    """η from the mean alone, and from it and its complement where there is one."""
    family = LAWS[name].family

    def at(z):
        mu = family.mean(z)
        natural = family.natural(mu)
        if not hasattr(family, "mean_complement"):
            return natural, natural
        complement = family.mean_complement(z)
        return natural, family.natural_from_complement(mu, complement)

    return jax.device_get(jax.jit(jax.vmap(at))(edges(name)))


@pytest.mark.parametrize("name", EDGES)
def test_natural_inverts_mean_or_says_that_it_cannot(name):
    z, natural = np.asarray(edges(name)), inverses(name)[0]
    # Single precision leaves up to an eighth of the distance to the boundary open.
    bad = np.isfinite(natural) & (np.abs(natural - z) > 0.3 * np.abs(z))
    assert not np.any(bad), (z, natural)


@pytest.mark.parametrize("name", EDGES)
def test_with_its_complement_the_mean_determines_the_natural_parameters(
    name, tolerance
):
    z, natural = np.asarray(edges(name)), inverses(name)[1]
    resolved = np.abs(z) < 87 if z.ndim == 1 else np.full(z.shape, True)
    assert np.all(np.isfinite(natural[resolved]))
    rtol = tolerance("oracle", "float32")
    np.testing.assert_allclose(natural[resolved], z[resolved], rtol)


def test_the_complement_is_what_rounding_loses():
    lost = {
        "bernoulli": lambda mu: 1 - mu,
        "normal": lambda mu: mu[:, 1] - mu[:, 0] ** 2,
        "gamma": lambda mu: np.log(mu[:, 1]) - mu[:, 0],
        "inverse_gaussian": lambda mu: mu[:, 1] - 1 / mu[:, 0],
        "dirichlet": lambda mu: -np.log(np.exp(mu).sum(1)),
        "von_mises": lambda mu: 1 - np.hypot(mu[:, 0], mu[:, 1]),
    }
    for name, distance in lost.items():
        family, z = LAWS[name].family, ordinary(name)[:2]
        complement = jax.jit(jax.vmap(family.mean_complement))(z)
        mu = np.asarray(jax.jit(jax.vmap(family.mean))(z))
        np.testing.assert_allclose(complement, distance(mu), 1e-6, 1e-9, err_msg=name)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXPONENTIAL)
def test_natural_is_not_a_number_outside_of_the_domain_of_the_mean(name, dtype):
    mus = jnp.array(LAWS[name].beyond, dtype)
    natural = jax.jit(jax.vmap(LAWS[name].family.natural))(mus)
    assert np.all(np.any(np.isnan(np.reshape(natural, (len(mus), -1))), axis=1))


def test_inversions_that_failed_elsewhere_are_right_or_say_so():
    """Cases on which other libraries answer 14.7, 131071 and −∞."""
    single = functools.partial(jnp.array, dtype=jnp.float32)
    family = nf.VonMises()
    z = jnp.array([1e4, 0.0])
    natural = jax.jit(lambda z: family.natural(family.mean(z)))
    np.testing.assert_allclose(natural(z), z, 1e-9)
    np.testing.assert_allclose(natural(z.astype(jnp.float32)), z, 1e-2)
    gamma = nf.Gamma()
    roundtrip = jax.jit(
        lambda z: gamma.natural_from_complement(gamma.mean(z), gamma.mean_complement(z))
    )
    for shape in (1e3, 1e5, 1e7):
        z = single([shape, -1.0])
        np.testing.assert_allclose(roundtrip(z), z, 1e-6)
    normal = nf.Normal()
    # A variance of 0, and of 8: one unit in the last place of the second moment.
    for second_moment in (1e8, 1e8 + 8):
        assert np.all(np.isnan(normal.natural(single([1e4, second_moment]))))
    logit = single(20.0)
    bernoulli = nf.Bernoulli()
    mu, complement = bernoulli.mean(logit), bernoulli.mean_complement(logit)
    assert mu == 1
    np.testing.assert_allclose(
        bernoulli.natural_from_complement(mu, complement), 20, 1e-6
    )

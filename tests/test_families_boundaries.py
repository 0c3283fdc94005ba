"""Families at the boundaries of their domains, in single precision.

The oracles are exact for the very numbers that single precision holds, so that what is
measured is the library's rounding and not that of the inputs.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_oracles import derivatives, exact_kl, numbers
from laws import BOUNDARIES
from test_families_oracles import assert_matrices_agree

import natgrad.families as nf

NAMES = list(BOUNDARIES)
EXPONENTIAL = [name for name in NAMES if BOUNDARIES[name].exponential]
# The logistic law's divergence is integrated numerically by its oracle.
KL_NAMES = [name for name in NAMES if name != "logistic"]
SEPARATIONS = [1e-1, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8]
TINY = float(np.finfo(np.float32).tiny)


def points(name):
    return BOUNDARIES[name].extremes.astype(np.float32)


def quantities(family, z):
    out = {"fisher": family.fisher(z).reshape(z.size, z.size)}
    if isinstance(family, nf.ExponentialFamily):
        mu = family.mean(z)
        out |= {"mean": mu, "natural": family.natural(mu), "entropy": family.entropy(z)}
        if hasattr(family, "mean_complement"):
            complement = family.mean_complement(z)
            out["from complement"] = family.natural_from_complement(mu, complement)
    return out


@functools.cache
def computed(name):
    family = BOUNDARIES[name].family
    of_points = jax.jit(jax.vmap(functools.partial(quantities, family)))
    return jax.device_get(of_points(jnp.asarray(points(name))))


def in_double(name, which):
    method = jax.jit(jax.vmap(getattr(BOUNDARIES[name].family, which)))
    return np.asarray(method(jnp.asarray(points(name), "float64")))


@functools.cache
def oracle(name):
    return [derivatives(BOUNDARIES[name].oracle, numbers(z)) for z in points(name)]


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_mean_and_information_are_accurate(name, tolerance):
    rtol = tolerance("oracle", "float32")
    values = computed(name)
    for i, (_, gradient, hessian) in enumerate(oracle(name)):
        mean = np.array([float(entry) for entry in gradient])
        np.testing.assert_allclose(np.ravel(values["mean"][i]), mean, rtol, TINY)
        hessian = hessian.astype(float)
        if np.all(np.diag(hessian) > TINY):
            assert_matrices_agree(values["fisher"][i], hessian, rtol)
        else:
            np.testing.assert_allclose(values["fisher"][i], hessian, 0, TINY)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_natural_inverts_mean_or_says_that_it_cannot(name):
    z, natural = points(name), computed(name)["natural"]
    scale = np.abs(z).reshape(z.shape)
    # Single precision leaves up to an eighth of the distance to the boundary open.
    bad = np.isfinite(natural) & (np.abs(natural - z) > 0.3 * scale)
    assert not np.any(bad), (z, natural)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_with_its_complement_the_mean_determines_the_natural_parameters(
    name, tolerance
):
    z, values = points(name), computed(name)
    given = values.get("from complement", values["natural"])
    inside = np.abs(z) < 87 if z.ndim == 1 else np.full(z.shape, True)
    assert np.all(np.isfinite(given[inside]))
    rtol = tolerance("oracle", "float32")
    np.testing.assert_allclose(given[inside], z[inside], rtol)


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
        law = BOUNDARIES[name]
        ordinary = jnp.asarray(law.vague[-2:] if not law.sources else law.points[:2])
        complement = jax.jit(jax.vmap(law.family.mean_complement))(ordinary)
        mu = np.asarray(jax.jit(jax.vmap(law.family.mean))(ordinary))
        np.testing.assert_allclose(complement, distance(mu), 1e-6, 1e-9, err_msg=name)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_entropy_is_accurate(name, tolerance):
    single, double = computed(name)["entropy"], in_double(name, "entropy")
    scale = 1 + np.abs(double)
    np.testing.assert_allclose(
        single / scale, double / scale, 0, tolerance("oracle", "float32")
    )


def moved(z, fisher, size, rng):
    """A point at this distance, in units of the Fisher information or of z."""
    with np.errstate(divide="ignore"):
        deviation = (1 / np.sqrt(np.abs(np.diag(fisher)))).reshape(z.shape)
    reach = np.where(z == 0, deviation, np.minimum(deviation, np.abs(z)))
    step = size * rng.choice([-1.0, 1.0], z.shape) * reach
    return (z.astype(float) + step).astype(np.float32)


@functools.cache
def kl(name):
    return jax.jit(jax.vmap(BOUNDARIES[name].family.kl))


@pytest.mark.parametrize("name", KL_NAMES)
def test_kl_of_near_points_is_positive_and_accurate(name, tolerance):
    law, rng = BOUNDARIES[name], np.random.default_rng(5)
    fishers = in_double(name, "fisher").reshape(
        len(points(name)), *2 * (points(name)[0].size,)
    )
    pairs = [
        (z, moved(z, fisher, size, rng))
        for z, fisher in zip(points(name), fishers, strict=True)
        for size in SEPARATIONS
    ]
    first, second = (np.stack(side) for side in zip(*pairs, strict=True))
    actual = np.asarray(kl(name)(jnp.asarray(first), jnp.asarray(second)))
    expected = np.array([float(exact_kl(law, a, b)) for a, b in pairs])
    assert actual.dtype == np.float32
    assert np.all(actual >= 0)
    same = np.all((first == second).reshape(len(first), -1), axis=1)
    np.testing.assert_array_equal(actual[same], 0)
    # Below the smallest normal number products are lost.
    lost = expected < 1e3 * TINY
    assert np.all(actual[lost] <= 1e4 * TINY)
    rtol = tolerance("oracle", "float32")
    np.testing.assert_allclose(actual[~same & ~lost], expected[~same & ~lost], rtol)
    # Seven separations of every point but the extreme ones can be told apart.
    assert np.sum(~same & ~lost) >= 3 * len(points(name))


OUTSIDE = {
    "bernoulli": [-0.1, 1.1],
    "binomial": [-0.1, 7.1],
    "poisson": [-0.1],
    "geometric": [-0.1],
    "negative_binomial": [-0.1],
    "exponential": [-0.1],
    "weibull": [-0.1],
    "normal": [[1.0, 0.5], [1.0, 1.0]],
    "log_normal": [[1.0, 0.5], [1.0, 1.0]],
    "gamma": [[0.7, 2.0], [0.0, -1.0], [0.0, 1.0]],
    "inverse_gamma": [[-0.7, 2.0], [0.0, -1.0], [0.0, 1.0]],
    "inverse_gaussian": [[2.0, 0.4], [-1.0, 1.0], [2.0, 0.5]],
    "beta": [[-0.1, -0.1], [0.1, -9.0]],
    "dirichlet": [[-0.1, -0.1, -3.0], [0.1, -9.0, -9.0]],
    "multivariate_normal": [[0.0, 0, 1, 2, 1], [2.0, 0, 1, 0, 1]],
    "multivariate_normal_diag": [[2.0, 0, 1, 1]],
    "von_mises": [[1.0, 0.5], [1.0, 0.0]],
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", EXPONENTIAL)
def test_natural_is_not_a_number_outside_of_the_domain_of_the_mean(name, dtype):
    mus = jnp.array(OUTSIDE[name], dtype)
    natural = jax.jit(jax.vmap(BOUNDARIES[name].family.natural))(mus)
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
    assert np.all(np.isnan(normal.natural(single([1e4, 1e8]))))
    logit = single(20.0)
    bernoulli = nf.Bernoulli()
    mu, complement = bernoulli.mean(logit), bernoulli.mean_complement(logit)
    assert mu == 1
    np.testing.assert_allclose(
        bernoulli.natural_from_complement(mu, complement), 20, 1e-6
    )

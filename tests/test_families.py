"""Single cases that went wrong somewhere, and what holds for the package as a whole."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from laws import LAWS

import natgrad.families as nf

DTYPES = ["float32", "float64"]


def test_known_divergences_of_near_points_in_single_precision():
    logit = lambda p: jnp.float32(np.log(p / (1 - p)))
    single = functools.partial(jnp.array, dtype=jnp.float32)
    bernoulli = nf.Bernoulli().kl(logit(0.3), logit(0.30001))
    np.testing.assert_allclose(bernoulli, 2.38e-10, 2e-2)
    near = nf.NormalMeanLogScale().kl(single([10, 0]), single([10.0001, 0]))
    np.testing.assert_allclose(near, 5e-9, 2e-2)
    near = nf.Normal().kl(single([10, -0.5]), single([10.0001, -0.5]))
    np.testing.assert_allclose(near, 5e-9, 2e-2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_saturated_logits_have_finite_divergences_and_derivatives(dtype):
    logits = jnp.array([100.0, -100.0, 0.0], dtype)
    kl, binary_kl = jax.jit(nf.Categorical().kl), jax.jit(nf.Bernoulli().kl)
    np.testing.assert_allclose(kl(logits, logits[::-1]), 100, 1e-6)
    np.testing.assert_allclose(binary_kl(logits[0], logits[1]), 100, 1e-6)
    for argnum in (0, 1):
        gradient = jax.jit(jax.grad(kl, argnum))(logits, jnp.roll(logits, 1))
        assert jnp.all(jnp.isfinite(gradient))
        hessian = jax.jit(jax.hessian(binary_kl, argnum))(logits[0], logits[1])
        assert jnp.isfinite(hessian)
    masked = jnp.array([1.0, -1e9, 0.0], dtype)
    moved = kl(masked, masked.at[0].add(1.0))
    np.testing.assert_allclose(moved, binary_kl(masked[0], masked[0] + 1), 1e-5)


def test_saturated_information_keeps_its_relative_accuracy_in_single_precision():
    z = jnp.float32(20.0)
    np.testing.assert_allclose(nf.Bernoulli().fisher(z), np.exp(-20), 1e-5)
    fisher = nf.Categorical().fisher(jnp.stack([z, 0 * z, 0 * z]))
    np.testing.assert_allclose(
        jnp.diag(fisher), [2 * np.exp(-20)] + 2 * [np.exp(-20)], 1e-5
    )


def test_constants_may_be_traced():
    z = jnp.array([0.3, 0.1])
    by_scale = jax.jit(jax.grad(lambda scale: nf.NormalMean(scale).kl(z[0], z[1])))
    np.testing.assert_allclose(by_scale(2.0), -(0.2**2) / 8)
    log_prob = lambda nu: nf.StudentT(nu).log_prob(z, jnp.array(1.0))
    check_grads(jax.jit(log_prob), (3.0,), order=1, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(log_prob)(3.0), log_prob(3.0), 1e-12)


def test_every_exported_family_is_in_the_table():
    exported = {
        cls
        for cls in map(nf.__dict__.get, nf.__all__)
        if isinstance(cls, type) and cls not in {nf.Family, nf.ExponentialFamily}
    }
    table = {type(law.family) for law in LAWS.values()}
    # Unnormalized has neither draws nor divergences; test_centred.py has its laws.
    assert exported == table | {nf.Product, nf.Transformed, nf.Unnormalized}

"""Products of families: sums over blocks, missing blocks, errors."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad.families as nf


def run(function, *arguments):
    return jax.jit(function)(*arguments)


BLOCKS = nf.Product(
    (nf.Normal(), nf.Poisson(), nf.Dirichlet(), nf.Bernoulli()), (2, 1, 3, 2)
)
PARTS = [
    (nf.Normal(), slice(0, 2), 0),
    (nf.Poisson(), 2, 1),
    (nf.Dirichlet(), slice(3, 6), slice(2, 5)),
    (nf.Bernoulli(), slice(6, 8), slice(5, 7)),
]
BLOCKS_Z = jnp.array([0.4, -0.8, 0.3, 1.0, 0.5, -0.2, 0.7, -1.2])


def summed(method, *arguments):
    """The sum over the blocks, made by hand."""
    parts = [(f, tuple(a[s] for a in arguments)) for f, s, _ in PARTS]
    return jax.jit(lambda: sum(getattr(f, method)(*part) for f, part in parts))()


def log_prob_of(parts, z, y):
    return jax.jit(lambda: sum(f.log_prob(z[s], y[t]) for f, s, t in parts))()


@pytest.mark.slow
def test_a_product_is_the_sum_of_its_blocks(tolerance):
    z, z2 = BLOCKS_Z, BLOCKS_Z * jnp.linspace(0.8, 1.1, 8)
    y = run(BLOCKS.sample, jax.random.PRNGKey(0), z)
    assert y.shape == BLOCKS.label_shape(z.shape) == (7,)
    assert bool(run(BLOCKS.in_support, z, y))
    assert not bool(run(BLOCKS.in_support, z, y.at[1].set(-1.0)))
    log_prob = log_prob_of(PARTS, z, y)
    rtol = tolerance("identity")
    np.testing.assert_allclose(run(BLOCKS.log_prob, z, y), log_prob, rtol)
    for method, arguments in (("kl", (z, z2)), ("entropy", (z,))):
        expected = summed(method, *arguments)
        np.testing.assert_allclose(
            run(getattr(BLOCKS, method), *arguments), expected, rtol
        )
    gradient = run(jax.grad(BLOCKS.log_prob), z, y)
    np.testing.assert_allclose(run(BLOCKS.score, z, y), gradient, rtol, 1e-12)
    mu = run(BLOCKS.mean, z)
    np.testing.assert_allclose(mu, run(jax.grad(BLOCKS.log_normalizer), z), rtol)
    np.testing.assert_allclose(run(BLOCKS.natural, mu), z, 1e-9)


@pytest.mark.slow
def test_definitions_of_the_information_of_a_product_agree(tolerance):
    z = BLOCKS_Z
    expected = np.zeros((8, 8))
    for family, s, _ in PARTS:
        size = np.size(z[s])
        place = np.arange(8)[s].reshape(-1)
        expected[np.ix_(place, place)] = np.reshape(
            run(family.fisher, z[s]), (size, size)
        )
    ys, weights = run(BLOCKS.score_nodes, z)
    scores = run(jax.vmap(BLOCKS.score, (None, 0)), z, ys)
    products = jnp.einsum("k,ki,kj->ij", weights, scores, scores)
    hessian = run(jax.hessian(lambda z2: BLOCKS.kl(z, z2)), z)
    roots = run(jax.vmap(BLOCKS.fisher_root_product, (None, 0)), z, jnp.eye(8))
    for actual in (products, hessian, roots.T @ roots, run(BLOCKS.fisher, z)):
        np.testing.assert_allclose(actual, expected, tolerance("identity"), 1e-11)
    v = jnp.arange(8.0)
    np.testing.assert_allclose(run(BLOCKS.fisher_product, z, v), expected @ v, 1e-10)
    # Their number is the sum of the blocks' numbers.
    assert len(weights) == 3 + 2 + 6 + 2 * 2


def test_a_missing_block_adds_nothing():
    z = BLOCKS_Z
    y = run(BLOCKS.sample, jax.random.PRNGKey(0), z)
    partial = y.at[2:5].set(jnp.nan).at[5].set(jnp.nan)
    value, gradient = run(jax.value_and_grad(BLOCKS.log_prob), z, partial)
    observed = (PARTS[0], PARTS[1], (nf.Bernoulli(), 7, 6))
    expected = log_prob_of(observed, z, y)
    np.testing.assert_allclose(value, expected, 1e-12)
    np.testing.assert_array_equal(gradient[3:7], 0)
    score = run(BLOCKS.score, z, partial)
    np.testing.assert_allclose(score, gradient, 1e-10, 1e-12)
    assert bool(run(BLOCKS.in_support, z, partial))


def test_factors_of_a_product():
    z = jnp.stack([BLOCKS_Z, BLOCKS_Z[::1] * 0.9])
    y = run(BLOCKS.sample, jax.random.PRNGKey(0), z)
    assert y.shape == BLOCKS.label_shape(z.shape) == (2, 7)
    each = run(jax.vmap(BLOCKS.log_prob), z, y)
    np.testing.assert_allclose(run(BLOCKS.log_prob, z, y), each.sum(), 1e-12)
    assert run(BLOCKS.in_support, z, y).shape == (2,)
    scores = run(jax.vmap(BLOCKS.score), z, y)
    np.testing.assert_allclose(run(BLOCKS.score, z, y), scores, 1e-12)


def test_a_product_is_exponential_if_its_blocks_are():
    assert isinstance(BLOCKS, nf.ExponentialFamily)
    mixed = nf.Product((nf.Normal(), nf.Cauchy()), (2, 2))
    assert isinstance(mixed, nf.Product)
    assert not isinstance(mixed, nf.ExponentialFamily)
    z = jnp.array([0.4, -0.8, 0.3, 0.2])
    fisher = run(mixed.fisher, z)
    np.testing.assert_allclose(fisher[:2, :2], run(nf.Normal().fisher, z[:2]), 1e-12)
    np.testing.assert_allclose(fisher[2:, 2:], run(nf.Cauchy().fisher, z[2:]), 1e-12)
    np.testing.assert_array_equal(fisher[:2, 2:], 0)
    for family in (BLOCKS, mixed):
        assert pickle.loads(pickle.dumps(family)) == copy.copy(family) == family
        assert hash(family) == hash(dataclasses.replace(family))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nf.Product((nf.Normal(),), (2, 1)), "1 families and sizes"),
        (lambda: nf.Product((), ()), "0 families"),
        (lambda: nf.Product((nf.Normal(), nf.LogNormal), (2, 2)), "a block is"),
        (lambda: BLOCKS.mean(jnp.zeros(3)), "the sum of sizes"),
    ],
)
def test_an_error_says_what_was_given_and_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()

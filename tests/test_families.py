"""Laws that every family obeys, over the table of `test_families_oracles`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import LAWS
from test_families_oracles import CASES, NAMES, POINTS, assert_matrices_agree

import natgrad.families as nf

EXPONENTIAL = [n for n in NAMES if isinstance(CASES[n].family, nf.ExponentialFamily)]
DTYPES = ["float32", "float64"]


def outer_products(family, z):
    """Σ_k w_k s_k s_kᵀ as a matrix, from `nodes` and `score` alone."""
    ys, weights = family.nodes(z)
    scores = jax.vmap(lambda y: family.score(z, y))(ys).reshape(weights.shape[0], -1)
    return jnp.einsum("k,ki,kj->ij", weights, scores, scores)


def kl_hessian(family, z):
    """∂²/∂z2² KL(z ‖ z2) at z2 = z, as a matrix."""
    return jax.hessian(lambda z2: family.kl(z, z2))(z).reshape(z.size, z.size)


def closed_form(family, z):
    return family.fisher(z).reshape(z.size, z.size)


DEFINITIONS = {"nodes": outer_products, "kl": kl_hessian, "fisher": closed_form}


@functools.cache
def definition(name, how):
    return jax.jit(lambda z: DEFINITIONS[how](CASES[name].family, z))


@functools.cache
def method(name, which):
    return jax.jit(getattr(CASES[name].family, which))


def ordinary_points(name):
    return [jnp.asarray(z) for z in CASES[name].points[:3]]


@pytest.mark.parametrize("how", ["nodes", "kl"])
@pytest.mark.parametrize(("name", "point"), POINTS)
def test_three_definitions_of_the_fisher_information_agree(name, point, how, tolerance):
    z = jnp.asarray(CASES[name].points[point])
    expected = definition(name, "fisher")(z)
    assert_matrices_agree(definition(name, how)(z), expected, tolerance("identity"))


@pytest.mark.parametrize("how", ["nodes", "kl"])
@pytest.mark.parametrize("name", NAMES)
def test_the_definitions_agree_in_single_precision(name, how, tolerance):
    for z in ordinary_points(name):
        z = z.astype(jnp.float32)
        expected = definition(name, "fisher")(z)
        rtol = tolerance("identity", "float32")
        assert_matrices_agree(definition(name, how)(z), expected, rtol)


@pytest.mark.parametrize("name", NAMES)
def test_the_fisher_product_is_the_matrix_times_the_vector(name, tolerance):
    for z in ordinary_points(name):
        v = jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
        expected = definition(name, "fisher")(z) @ v.ravel()
        actual = method(name, "fisher_product")(z, v).ravel()
        np.testing.assert_allclose(actual, expected, tolerance("identity"), 1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_the_score_is_the_gradient_of_log_prob(name, tolerance):
    gradient = jax.jit(jax.grad(CASES[name].family.log_prob))
    for z in ordinary_points(name):
        y = method(name, "sample")(jax.random.PRNGKey(0), z)
        expected = gradient(z, y)
        actual = method(name, "score")(z, y)
        np.testing.assert_allclose(actual, expected, tolerance("identity"), 1e-12)


@pytest.mark.parametrize(("name", "point"), POINTS)
def test_the_score_has_mean_zero_under_the_nodes(name, point, tolerance):
    z = jnp.asarray(CASES[name].points[point])
    ys, weights = method(name, "nodes")(z)
    scores = jax.vmap(method(name, "score"), (None, 0))(z, ys)
    scores = scores.reshape(weights.shape[0], -1)
    deviations = jnp.sqrt(jnp.diag(definition(name, "fisher")(z)))
    assert ys.shape[0] == weights.shape[0] <= 100
    np.testing.assert_allclose(weights.sum(), 1, tolerance("identity"))
    np.testing.assert_allclose(weights @ scores / deviations, 0, atol=1e-9)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_mean_is_the_gradient_of_the_log_normalizer(name, tolerance):
    family = CASES[name].family
    for eta in ordinary_points(name):
        expected = jax.grad(family.log_normalizer)(eta)
        np.testing.assert_allclose(family.mean(eta), expected, tolerance("identity"))


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_natural_inverts_mean(name, tolerance):
    for eta in ordinary_points(name):
        actual = method(name, "natural")(method(name, "mean")(eta))
        np.testing.assert_allclose(actual, eta, tolerance("identity"), 1e-10)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_derivative_of_natural_inverts_the_fisher_information(name, tolerance):
    for eta in ordinary_points(name):
        jacobian = jax.jacrev(CASES[name].family.natural)(method(name, "mean")(eta))
        fisher = definition(name, "fisher")(eta)
        product = fisher @ jacobian.reshape(fisher.shape) @ fisher
        assert_matrices_agree(product, fisher, tolerance("solve"))


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_conjugate_is_the_legendre_transform(name, tolerance):
    family = CASES[name].family
    for eta in ordinary_points(name):
        mu = method(name, "mean")(eta)
        expected = jnp.sum(eta * mu) - family.log_normalizer(eta)
        conjugate = method(name, "conjugate")(mu)
        np.testing.assert_allclose(conjugate, expected, tolerance("identity"), 1e-12)
        gradient = jax.grad(family.conjugate)(mu)
        np.testing.assert_allclose(gradient, eta, tolerance("identity"), 1e-9)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_kl_is_the_bregman_divergence_with_its_arguments_swapped(name, tolerance):
    z, z2, _ = ordinary_points(name)
    kl = float(method(name, "kl")(z, z2))
    bregman = method(name, "bregman")
    np.testing.assert_allclose(kl, bregman(z2, z), tolerance("oracle"))
    assert abs(kl - bregman(z, z2)) > 1e-4 * kl


@pytest.mark.parametrize("name", NAMES)
def test_kl_of_a_law_from_itself_is_zero(name):
    gradient = jax.jit(jax.grad(CASES[name].family.kl, argnums=1))
    for z in map(jnp.asarray, CASES[name].points):
        assert method(name, "kl")(z, z) == 0
        z = z.astype(jnp.float32)
        assert method(name, "kl")(z, z) == 0
        np.testing.assert_array_equal(gradient(z, z), 0)


@pytest.mark.parametrize("name", NAMES)
def test_kl_of_near_points_keeps_its_accuracy_in_single_precision(name):
    for z in ordinary_points(name):
        z = z.astype(jnp.float32)
        for step in (1e-2, 1e-3):
            z2 = z + step * jnp.abs(z) * jnp.cos(jnp.arange(z.size) + 0.0).reshape(
                z.shape
            )
            z2 = z2.astype(jnp.float32)
            exact = method(name, "kl")(z.astype(jnp.float64), z2.astype(jnp.float64))
            assert exact > 0
            np.testing.assert_allclose(method(name, "kl")(z, z2), exact, 2e-4)


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


@pytest.mark.parametrize("name", NAMES)
def test_samples_have_the_mean_and_the_covariance_of_the_law(name):
    family, number = CASES[name].family, 20_000
    z = ordinary_points(name)[0]
    keys = jax.random.split(jax.random.PRNGKey(1), number)
    ys = jax.jit(jax.vmap(family.sample, (0, None)))(keys, z)
    assert jnp.all(jax.vmap(family.in_support, (None, 0))(z, ys))
    scores = jax.jit(jax.vmap(family.score, (None, 0)))(z, ys).reshape(number, -1)
    products = jnp.einsum("ni,nj->nij", scores, scores).reshape(number, -1)
    expected = definition(name, "fisher")(z).ravel()
    for values, mean in ((scores, 0.0), (products, expected)):
        errors = jnp.std(values, axis=0) / np.sqrt(number)
        deviations = jnp.abs(jnp.mean(values, axis=0) - mean)
        assert jnp.all(deviations < 5 * errors + 1e-12)
        assert jnp.any(errors > 0)


@pytest.mark.parametrize("name", NAMES)
def test_further_axes_are_independent_factors(name, tolerance):
    family = CASES[name].family
    rows = ordinary_points(name)
    z = jnp.stack([jnp.stack(rows), jnp.stack(rows[::-1])])
    z2 = jnp.roll(z, 1, axis=0)
    factors = z.shape[:2]
    y = method(name, "sample")(jax.random.PRNGKey(2), z)
    flat = lambda a: a.reshape((6, *a.shape[2:]))
    np.testing.assert_allclose(
        method(name, "log_prob")(z, y),
        sum(map(method(name, "log_prob"), flat(z), flat(y))),
        tolerance("identity"),
    )
    np.testing.assert_allclose(
        method(name, "kl")(z, z2),
        sum(map(method(name, "kl"), flat(z), flat(z2))),
        tolerance("identity"),
    )
    np.testing.assert_allclose(
        flat(method(name, "score")(z, y)),
        jnp.stack(list(map(method(name, "score"), flat(z), flat(y)))),
        1e-12,
    )
    assert y.shape == family.label_shape(z.shape) == factors
    assert family.in_support(z, y).shape == factors
    assert jnp.all(family.in_support(z, y))
    blocks = jnp.zeros((6, z[0, 0].size, 6, z[0, 0].size))
    for i, row in enumerate(flat(z)):
        blocks = blocks.at[i, :, i, :].set(definition(name, "fisher")(row))
    np.testing.assert_allclose(
        method(name, "fisher")(z).reshape(blocks.shape),
        blocks,
        tolerance("identity"),
        1e-12,
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_the_precision_of_the_outputs_is_that_of_z(name, dtype):
    family, key = CASES[name].family, jax.random.PRNGKey(0)
    z = ordinary_points(name)[0].astype(dtype)

    def results(z):
        y = family.sample(key, z)
        ys, weights = family.nodes(z)
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
            values |= {"bregman": family.bregman(z, z)}
        return values

    dtypes = {which: str(a.dtype) for which, a in jax.eval_shape(results, z).items()}
    assert dtypes == dict.fromkeys(dtypes, dtype)


def test_every_exported_family_is_in_the_table():
    exported = {
        cls
        for cls in map(nf.__dict__.get, nf.__all__)
        if isinstance(cls, type) and cls not in {nf.Family, nf.ExponentialFamily}
    }
    tables = {type(case.family) for case in (*CASES.values(), *LAWS.values())}
    # Unnormalized has neither draws nor divergences; test_centred.py has its laws.
    assert exported == tables | {nf.Product, nf.Transformed, nf.Unnormalized}

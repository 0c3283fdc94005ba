"""F block by block: exactly in sample space, as A ⊗ G, and what K-FAC makes of it.

The oracle is a Jacobian of the whole network and numpy.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import ravel, relative_error

import natgrad as ng
from natgrad.compare import Budget
from natgrad.compare.error_sources import ErrorSource, error_sources, in_words
from natgrad.curvature import KFAC, KFOC, Exact, GramBlocks

LAMBDA = 1e-2


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def tokens(p, x):
    """Lookups, a wide and a narrow layer at two positions: rows of all three kinds."""
    hidden = jnp.tanh(p["embed"][x])
    hidden = jnp.tanh(hidden @ p["wide"]["w"] + p["wide"]["b"][None, None])
    return jnp.sum(jnp.tanh(hidden @ p["last"]["w"] + p["last"]["b"][None, None]), 1)


def stacked(p, x):
    layer = lambda h, w: (jnp.tanh(h @ w), None)
    return jax.lax.scan(layer, x, p["stack"])[0] @ p["last"]["w"]


def layer(seed, inputs, outputs):
    w, b = normal(seed, inputs, outputs), normal(seed + 1, outputs)
    return {"w": w / np.sqrt(inputs), "b": 0.3 * b}


@functools.cache
def network(name, count=6):
    """(model, params, x); parameters are NumPy's, in float64."""
    if name == "tokens":
        apply, x = tokens, np.random.default_rng(0).integers(0, 5, (count, 2))
        params = {"embed": normal(1, 5, 10), "wide": layer(2, 10, 10)}
        params["last"] = layer(4, 10, 3)
    else:
        apply, x = stacked, normal(0, count, 3)
        params = {"stack": normal(1, 2, 3, 3), "last": {"w": normal(2, 3, 3)}}
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=x[:1])
    return model, params, x


@functools.cache
def fisher(name, count=6):
    """F of the whole network, [P, P]."""
    model, params, x = network(name, count)
    layout = ng.tree.Layout.of(params)
    outputs = lambda vector: model.apply(layout.unravel(vector), x)
    z, rows = jax.jit(lambda v: (outputs(v), jax.jacrev(outputs)(v)))(ravel(params))
    p = np.asarray(jax.nn.softmax(z))
    in_z = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    return np.einsum("ncp,ncd,ndq->pq", rows, in_z, rows, optimize=True) / len(x)


def places(name, count=6):
    """Block's name -> the places of its parameters as the matrix [I (+1), O]."""
    _, params, _ = network(name, count)
    numbers = ng.tree.Layout.of(params).split(jnp.arange(len(fisher(name, count))))
    numbers = jax.tree.map(np.asarray, numbers)

    def matrix(leaf):
        if not isinstance(leaf, dict):
            return leaf
        return np.vstack([leaf["w"], *(leaf[n][None] for n in leaf if n == "b")])

    return {name: matrix(leaf) for name, leaf in numbers.items()}


def squared(matrix):
    return float(np.sum(matrix**2))


@pytest.mark.parametrize("name", ["tokens", "stacked"])
def test_the_blocks_are_those_of_f_and_are_solved_each_by_itself(name):
    """The two layers of a scan are one block."""
    model, params, x = network(name)
    exact, expected = fisher(name), np.zeros_like(fisher(name))
    v = np.cos(np.arange(len(exact)))
    step = np.zeros_like(v)
    for place in places(name).values():
        place = place.ravel()
        own = exact[np.ix_(place, place)]
        expected[np.ix_(place, place)] = own
        step[place] = np.linalg.solve(own + LAMBDA * np.eye(len(own)), v[place])
    tx = ng.gram_blocks(0.3, model, damping=LAMBDA, labels=Exact(), trust_region=None)

    @jax.jit
    def given(params, v):
        metric = GramBlocks(model).at(params, x)
        updates, state = tx.update(v, tx.init(params), params, inputs=x)
        health = state[0].health
        return metric.dense(), ravel(metric.solve(v, LAMBDA)), ravel(updates), health

    tree = ng.tree.Layout.of(params).unravel(jnp.asarray(v))
    dense, solution, updates, health = given(params, tree)
    assert relative_error(dense, expected) < 1e-12
    assert relative_error(solution, step) < 1e-10
    assert relative_error(updates, -0.3 * step) < 1e-10
    assert health.residual < 1e-10
    assert not health.fallback


def test_float32_blocks_of_784_inputs_are_solved_as_in_float64():
    def apply(p, x):
        return jnp.tanh(x @ p["a"]["w"] + p["a"]["b"][None]) @ p["z"]["w"]

    x = np.random.default_rng(0).uniform(size=(64, 784))
    params = {"a": layer(1, 784, 3), "z": {"w": normal(3, 3, 10)}}
    model = ng.Model(apply, ng.families.NormalMean(1.0), example_inputs=x[:1])
    layout = ng.tree.Layout.of(params)
    outputs = lambda vector: apply(layout.unravel(vector), x)
    rows = np.asarray(jax.jit(jax.jacrev(outputs))(ravel(params)))
    rows = rows.reshape(640, -1) / 8
    v = rows.T @ normal(4, 640)
    expected, first = np.empty_like(v), 3 + 784 * 3
    for part in (slice(0, first), slice(first, None)):
        own = rows[:, part].T @ rows[:, part]
        own += LAMBDA * np.eye(len(own))
        expected[part] = np.linalg.solve(own, v[part])
    with jax.enable_x64(False):
        narrow = jax.tree.map(lambda leaf: jnp.asarray(leaf, "float32"), params)
        solve = lambda p, v: GramBlocks(model).at(p, jnp.asarray(x)).solve(v, LAMBDA)
        given = jax.jit(solve)(narrow, ng.tree.Layout.of(narrow).unravel(jnp.array(v)))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(given)} == {"float32"}
    assert relative_error(ravel(given), expected) < 1e-3


def rearranged(matrix, place, diagonal):
    """F_b as [I², O²], or the rows (i, i) of it."""
    i, o = place.shape
    own = matrix[np.ix_(place.ravel(), place.ravel())].reshape(i, o, i, o)
    moved = own.transpose(0, 2, 1, 3).reshape(i * i, o * o)
    return moved[:: i + 1] if diagonal else moved


@pytest.mark.parametrize("network_name", ["tokens", "stacked"])
def test_kfoc_is_the_nearest_kronecker_product_and_no_further_than_kfac(network_name):
    """Of each layer of a scan by itself, as K-FAC's."""
    model, params, x = network(network_name)
    forms = {"kfac": KFAC(model), "few": KFOC(model)}
    forms["kfoc"] = KFOC(model, iterations=200)
    dense = lambda p: {name: form.at(p, x).dense() for name, form in forms.items()}
    given = {n: np.asarray(m) for n, m in jax.jit(dense)(params).items()}
    exact = fisher(network_name)
    layers = {
        (name, i): place
        for name, stack in places(network_name).items()
        for i, place in enumerate(stack.reshape(-1, *stack.shape[-2:]))
    }
    for name, place in layers.items():
        block, diagonal = np.ix_(place.ravel(), place.ravel()), name[0] == "embed"
        left, values, right = np.linalg.svd(rearranged(exact, place, diagonal))
        nearest = values[0] * np.outer(left[:, 0], right[0])
        found = rearranged(given["kfoc"], place, diagonal)
        assert relative_error(found, nearest) < 1e-8, name
        errors = {n: squared(exact[block] - given[n][block]) for n in given}
        least = squared(exact[block]) - values[0] ** 2
        assert errors["kfoc"] == pytest.approx(least, rel=1e-9), name
        assert (1 - 1e-9) * least < errors["few"] < 1.001 * least, name
        assert errors["few"] < min(errors["kfac"], squared(exact[block])), name


@pytest.mark.parametrize("count", [6, 80])  # fewer and more rows than parameters
def test_the_sources_of_kfac_s_error_add_up_to_it(count):
    model, params, x = network("tokens", count)
    *blocks, between, whole = error_sources(model, params, x, Budget())
    exact = fisher("tokens", count)
    forms = [KFAC(model), KFOC(model)]
    given = jax.jit(lambda p: [form.at(p, x).dense() for form in forms])(params)
    square, inside = squared(exact), 0.0
    for name, place in places("tokens", count).items():
        (found,) = [block for block in blocks if block.name.startswith(name)]
        own = np.ix_(place.ravel(), place.ravel())
        parts = [squared(exact[own]), *(squared((exact - m)[own]) for m in given)]
        shares = np.array([found.square, found.kfac, found.nearest])
        np.testing.assert_allclose(shares, np.array(parts) / square, 1e-10)
        inside += parts[0] / square
    assert between.square == pytest.approx(1 - inside, rel=1e-10)
    assert between.kfac == between.nearest == between.square
    total = [1, *(squared(exact - m) / square for m in given)]
    found = [whole.square, whole.kfac, whole.nearest]
    np.testing.assert_allclose(found, total, 1e-10)


def test_sources_that_cannot_be_had_are_left_out():
    model, params, x = network("tokens")
    assert error_sources(model, params, x, Budget(memory=1e4)) == ()
    mixed = lambda p, x: tokens(p, x) - jnp.mean(tokens(p, x), 0, keepdims=True)
    others = dataclasses.replace(model, apply=mixed)
    assert error_sources(others, params, x, Budget()) == ()


def test_the_verdict_says_where_an_error_comes_from_that_can_be_seen():
    def words(kfac, nearest):
        parts = [("a", 0.9, kfac, nearest), ("between layers", 0.1, 0.1, 0.1)]
        whole = ("in all", 1.0, kfac + 0.1, nearest + 0.1)
        return in_words(tuple(ErrorSource(*part) for part in (*parts, whole)))

    (sentence,) = words(0.3, 0.1)
    assert "off by 63% of" in sentence
    for part in ("25% lies between", "50% in its choice", "25% in what no A ⊗ G"):
        assert part in sentence
    assert in_words((ErrorSource("in all", 1.0, 0.009, 0.0),)) == []
    assert in_words(()) == []

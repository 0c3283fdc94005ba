"""Dimension numbers for optax's Muon: its steps are those of the layers' matrices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from optax import contrib

from natgrad import layers, tree

# Model of the zoo -> parameter -> (axes contracted with the input, axes of the output).
EXPECTED = {
    "plain": {"w1": ((0,), (1,)), "w2": ((0,), (1,))},
    "linen cnn": {
        "params/Conv_0/kernel": ((0, 1, 2), (3,)),
        "params/ConvTranspose_0/kernel": ((0, 1, 2), (3,)),
        "params/Dense_0/kernel": ((0,), (1,)),
    },
    "equinox cnn": {
        "one/weight": ((1, 2, 3), (0,)),
        "three/weight": ((1, 2, 3), (0,)),
        "last/weight": ((1,), (0,)),
    },
    "attention": {
        **{f"params/Dense_{i}/kernel": ((0,), (1,)) for i in (0, 1)},
        **{
            f"params/MultiHeadDotProductAttention_0/{name}/kernel": ((0,), (1, 2))
            for name in ("query", "key", "value")
        },
        "params/MultiHeadDotProductAttention_0/out/kernel": ((0, 1), (2,)),
    },
    "scan over layers": {"w": ((1,), (2,)), "o": ((0,), (1,))},
    "tied embedding": {"params/Dense_0/kernel": ((0,), (1,))},
}
EVERY = pytest.mark.parametrize("name", EXPECTED)


@functools.cache
def numbers_of(name, exclude=()):
    """Parameters, the tree, and by path what is not None in it."""
    apply, params, inputs, in_axes = zoo.ZOO[name]()

    class Model:
        example_inputs = inputs

    Model.apply, Model.in_axes = staticmethod(apply), in_axes
    found = layers.muon_dimension_numbers(Model, params, exclude=exclude)
    by_leaf = jax.tree.structure(params).flatten_up_to(found)
    named = zip(tree.paths(params), by_leaf, strict=True)
    return params, found, {path: each for path, each in named if each is not None}


@EVERY
def test_what_meets_the_input_is_reduced(name):
    _, _, found = numbers_of(name)
    assert {path: tuple(each) for path, each in found.items()} == EXPECTED[name]


def alone(g):
    """Muon of one matrix [I, O], Adam of a vector: optax's rule without numbers."""
    tx = contrib.muon(0.1)
    return np.asarray(tx.update({"w": g}, tx.init({"w": g}), {"w": g})[0]["w"])


def by_matrices(g, axes):
    """The same of each matrix of a weight."""
    inputs, outputs = axes
    lead = [i for i in range(g.ndim) if i not in (*inputs, *outputs)]
    order = (*lead, *inputs, *outputs)
    turned = np.transpose(g, order)
    rows = int(np.prod([g.shape[i] for i in inputs]))
    matrices = turned.reshape(int(np.prod([g.shape[i] for i in lead])), rows, -1)
    steps = np.stack([alone(jnp.asarray(matrix)) for matrix in matrices])
    return np.transpose(steps.reshape(turned.shape), np.argsort(order))


@pytest.mark.parametrize("name", ["equinox cnn", "attention", "scan over layers"])
def test_muon_steps_along_the_matrices_of_the_layers(name):
    params, numbers, found = numbers_of(name)
    rng = np.random.default_rng(0)
    grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    # A module of equinox is callable, and optax calls what can be called.
    tx = contrib.muon(0.1, muon_weight_dimension_numbers=lambda _: numbers)
    updates = jax.jit(lambda g: tx.update(g, tx.init(params), params)[0])(grads)
    leaves = map(jax.tree.leaves, (grads, updates))
    for path, g, update in zip(tree.paths(params), *leaves, strict=True):
        if path in found:
            expected = by_matrices(np.asarray(g), found[path])
        else:
            expected = alone(g.ravel()).reshape(g.shape)
        np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-8, err_msg=path)


def test_what_is_excluded_has_adam():
    _, _, whole = numbers_of("attention")
    paths = "params/Dense_1", "params/MultiHeadDotProductAttention_0/out/kernel"
    _, _, found = numbers_of("attention", paths)
    assert whole.keys() - found.keys() == {
        "params/Dense_1/kernel",
        "params/MultiHeadDotProductAttention_0/out/kernel",
    }
    with pytest.raises(ValueError, match=r"names no parameter by 'params/Dense_'"):
        numbers_of("attention", ("params/Dense_",))

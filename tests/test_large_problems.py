"""The large problems of the races: their sizes, what they see, what K-FAC reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from benchmarks import data, large_problems
from benchmarks.training import in_contexts

LENGTH = large_problems.CONTEXT


def small(name):
    """(apply, parameters of fewer channels and layers, inputs)."""
    key = jax.random.PRNGKey(0)
    if name == "decoder":
        params = large_problems.language_layers(0, width=12, layers=1)
        return (
            large_problems.language,
            params,
            jax.random.randint(key, (3, LENGTH), 0, 128),
        )
    params = large_problems.resnet_layers(0, stages=(4, 8), blocks=1)
    return large_problems.resnet, params, jax.random.uniform(key, (6, 32, 32, 1))


@pytest.fixture(autouse=True)
def as_benchmarks_run():
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        yield


def test_the_networks_have_the_sizes_of_their_names():
    """He et al. (2016), section 4.2: 6n + 2 layers, halved twice; n = 3."""
    params = jax.eval_shape(lambda: large_problems.resnet_layers(0))
    shapes = [
        leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if jax.tree_util.keystr(path).endswith("['w']")
    ]
    assert len(shapes) == 20
    assert sum(map(np.prod, shapes)) == pytest.approx(0.27e6, rel=0.01)
    program = jax.make_jaxpr(large_problems.resnet)(params, small("resnet20")[2])
    sides = {
        each.outvars[0].aval.shape[1]
        for each in program.eqns
        if each.primitive.name == "conv_general_dilated"
    }
    assert sides == {32, 16, 8}
    params = jax.eval_shape(lambda: large_problems.language_layers(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) > 10e6


@pytest.mark.parametrize("name", large_problems.PROBLEMS)
def test_kfac_reads_every_layer_and_a_step_against_the_gradient_helps(name):
    apply, params, x = small(name)
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=x[:1])
    found = ng.layers.capture(apply, params, x)
    leaves = sorted(leaf for block in found.blocks for leaf in block.leaves)
    assert leaves == [*range(len(jax.tree.leaves(params)))]
    y = x % 5 if name == "decoder" else jnp.arange(6)
    loss = jax.jit(jax.value_and_grad(lambda params: model.loss(params, x, y)))
    before, gradient = loss(params)
    square = sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient))
    rate = 1e-3 * before / square
    less = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    promised = rate * square
    np.testing.assert_allclose(before - loss(less)[0], promised, rtol=0.1)


def test_characters_are_told_by_those_before_them():
    apply, params, codes = small("decoder")
    place = 40
    change = codes.at[:, place].add(1)
    moved = jax.jit(apply)(params, change % 128) != jax.jit(apply)(params, codes)
    np.testing.assert_array_equal(
        np.any(moved, axis=(0, 2)), np.arange(LENGTH) >= place
    )
    text = data.library_text(1000)
    x, y = in_contexts(text, LENGTH)
    np.testing.assert_array_equal(x.ravel(), text[: x.size])
    np.testing.assert_array_equal(y.ravel(), text[1 : x.size + 1])

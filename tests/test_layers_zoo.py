"""Every model of the zoo: per-example gradients by a Python loop are the oracle."""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo

from natgrad import layers
from natgrad.model import batch

REPORTS = Path(__file__).with_name("test_layers_reports.txt")


@functools.cache
def case(name):
    return zoo.ZOO[name]()


@functools.cache
def captured(name):
    apply, params, inputs, in_axes = case(name)
    return layers.capture(apply, params, inputs, in_axes=in_axes)


@functools.cache
def cotangent(name):
    apply, params, inputs, _ = case(name)
    shape = jax.eval_shape(apply, params, inputs).shape
    return np.random.default_rng(1).standard_normal(shape)


@functools.cache
def bases(name):
    """A random orthogonal basis for each side of each block."""
    generator = np.random.default_rng(2)

    def basis(block, size):
        square = generator.standard_normal((*block.lead, size, size))
        return jnp.asarray(np.linalg.qr(square)[0])

    return {
        block.name: (
            None if block.diagonal_inputs else basis(block, block.rows),
            basis(block, block.outputs),
        )
        for block in captured(name).blocks
    }


@functools.cache
def measured(name):
    """The statistics of every block, from one compiled pass."""
    _, params, inputs, _ = case(name)
    wanted = {
        "gradient": layers.Gradient(),
        "each": layers.PerExample(),
        "squares": layers.Squares(),
        "projected": layers.ProjectedSquares(bases(name)),
    }

    @jax.jit
    def run(params, inputs, g):
        return captured(name).pull(wanted, params, inputs)[1](g)

    return run(params, inputs, cotangent(name))


@functools.cache
def looped(name):
    """Block -> V [N, lead..., I, O]: each example alone through the untapped model."""
    apply, params, inputs, in_axes = case(name)
    leaves, structure = jax.tree.flatten(inputs)
    is_none = lambda node: node is None
    axes = jax.tree.leaves(
        jax.tree.broadcast(in_axes, inputs, is_leaf=is_none), is_leaf=is_none
    )

    @jax.jit
    def gradient(params, inputs, g):
        return jax.grad(lambda p: jnp.sum(apply(p, inputs) * g))(params)

    each = []
    for n in range(zoo.N):
        one = [
            leaf if axis is None else leaf[n : n + 1]
            for leaf, axis in zip(leaves, axes, strict=True)
        ]
        alone = gradient(params, structure.unflatten(one), cotangent(name)[n : n + 1])
        each.append(captured(name).to_matrices(alone))
    return {key: np.stack([e[key] for e in each]) for key in each[0]}


def close(one, two):
    scale = max(float(np.max(np.abs(two))), 1e-30)
    assert np.max(np.abs(one - two)) / scale < 1e-9


@pytest.mark.parametrize("name", zoo.ZOO)
def test_the_gradient_is_the_sum_over_uses_and_of_a_plain_loop(name):
    gradient, found = measured(name)
    matrices = captured(name).to_matrices(gradient)
    for block in captured(name).blocks:
        close(found[block.name]["gradient"], looped(name)[block.name].sum(0))
        close(matrices[block.name], looped(name)[block.name].sum(0))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_every_examples_gradient_is_that_of_the_example_alone(name):
    _, found = measured(name)
    for block in captured(name).blocks:
        close(found[block.name]["each"], looped(name)[block.name])


@pytest.mark.parametrize("name", zoo.ZOO)
def test_squares_and_projected_squares_are_those_of_the_loop(name):
    _, found = measured(name)
    for block in captured(name).blocks:
        each = looped(name)[block.name]
        close(found[block.name]["squares"], (each**2).sum(0))
        left, right = bases(name)[block.name]
        turned = np.einsum("n...io,...op->n...ip", each, right)
        if left is not None:
            turned = np.einsum("n...io,...ij->n...jo", turned, left)
        close(found[block.name]["projected"], (turned**2).sum(0))


@pytest.mark.parametrize("name", zoo.ZOO)
def test_reading_and_writing_matrices_undo_each_other(name):
    _, params, _, _ = case(name)
    zeros = jax.tree.map(jnp.zeros_like, params)
    matrices = captured(name).to_matrices(params)
    again = captured(name).from_matrices(matrices, zeros)
    flat, _ = jax.tree.flatten(again)
    names = [
        jax.tree_util.keystr(p, simple=True, separator="/")
        for p, _ in jax.tree_util.tree_leaves_with_path(params)
    ]
    for path, one, two in zip(names, flat, jax.tree.leaves(params), strict=True):
        if not any(path.endswith(u) for u in captured(name).uncovered):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_everything_is_captured_and_proven(name):
    assert captured(name).proven.startswith("checked")
    assert all(isinstance(b, layers.LayerBlock) for b in captured(name).blocks)


@pytest.mark.parametrize("name", zoo.ZOO)
def test_one_example_has_the_blocks_of_the_batch(name):
    """A state is made from `example_inputs`, most often of one example."""
    apply, params, inputs, in_axes = case(name)
    batched, rebuild = batch.split_inputs(inputs, in_axes)
    one = rebuild([leaf[0] for leaf in batched])
    with layers.verify(False):
        alone = layers.capture(apply, params, one, in_axes=in_axes)
    seen = lambda found: [(b.name, b.kind, b.shape, b.roles) for b in found.blocks]
    assert seen(alone) == seen(captured(name))


# How many uses a derivative network has is up to JAX's own derivative rules.
DERIVED = {"pinn by hessian", "pinn forwards"}
REPORTED = [name for name in zoo.ZOO if name not in DERIVED]


@pytest.mark.parametrize("name", REPORTED)
def test_the_report_reads_as_the_file_beside_this_test(name):
    text = f"== {name}\n{layers.table(captured(name), case(name).params)}\n"
    assert text in REPORTS.read_text()

"""The same model in other coordinates of its layers."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from zoo import ZOO

from natgrad import layers
from natgrad.tree import inner

# How many blocks take part. Convolutions do not, nor what contracts two axes (the
# heads and their entries), nor a weight that is read transposed too.
TAKING_PART = {
    "plain": 2,
    "scan over layers": 2,
    "attention by einsum": 3,
    "experts": 3,
    "linen cnn": 1,
    "tied": 1,
}


def chart_of(case):
    """θ = T φ with random L in every layer that can be recombined."""
    draw = np.random.default_rng(0)
    found = layers.capture(case.apply, case.params, case.inputs, in_axes=case.in_axes)
    matrices = {
        block.name: jnp.asarray(draw.normal(size=(block.inputs, block.inputs)))
        for block in layers.recombinable(found)
    }
    return layers.Recombined(case.apply, matrices, found.blocks, case.in_axes)


def random_like(tree, seed):
    draw = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(draw.normal(size=leaf.shape)), tree)


@pytest.mark.parametrize("name", TAKING_PART)
def test_outputs_are_the_same_and_gradients_transform(name):
    case = ZOO[name]()
    chart = chart_of(case)
    assert len(chart.matrices) == TAKING_PART[name]
    there = chart.from_original(case.params)
    for back, original in zip(
        jax.tree.leaves(chart.to_original(there)),
        jax.tree.leaves(case.params),
        strict=True,
    ):
        assert back == pytest.approx(np.asarray(original), abs=1e-10)
    z, pull = jax.vjp(lambda p: case.apply(p, case.inputs), case.params)
    z_there, pull_there = jax.vjp(lambda p: chart(p, case.inputs), there)
    assert z_there == pytest.approx(np.asarray(z), abs=1e-10)
    # A covector at φ is Tᵀ of that at θ: tested along random directions.
    (gradient,), (gradient_there,) = pull(jnp.sin(z)), pull_there(jnp.sin(z))
    for seed in range(2):
        v = random_like(there, seed)
        slope = float(inner(gradient_there, v))
        assert slope == pytest.approx(float(inner(gradient, chart.to_original(v))))
        assert slope == pytest.approx(float(inner(chart.transposed(gradient), v)))

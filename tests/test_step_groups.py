"""Layers that share a step length: which, and how many for a batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad.transforms.adaptive.quadratic_forms import merged, of_successive_blocks

N, FEATURES, OUTPUTS = 16, 4, 2
RNG = np.random.default_rng(0)
X = np.asarray(RNG.normal(size=(N, FEATURES)) * [1, 3, 0.3, 1], "float32")
Y = np.asarray(X @ RNG.normal(size=(FEATURES, OUTPUTS)) + 1, "float32")


@pytest.mark.parametrize(
    ("layers", "most", "expected"),
    [
        (3, 8, ((0, 1), (2, 3), (4, 5, 6))),
        (3, 2, ((0, 1), (2, 3, 4, 5, 6))),
        (3, 1, ((0, 1, 2, 3, 4, 5, 6),)),
    ],
)
def test_groups_are_successive_layers_and_what_no_layer_reads(layers, most, expected):
    params = {
        "layers": [{"b": jnp.zeros(2), "w": jnp.eye(2)} for _ in range(layers)],
        "unread": jnp.zeros(3),
    }

    def apply(params, x):
        for layer in params["layers"]:
            x = jnp.tanh(x @ layer["w"] + layer["b"][None])
        return x

    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=jnp.zeros((1, 2)))
    curvature = ng.curvature.KFAC(model)
    metric = curvature.metric(curvature.init(params), params)
    assert of_successive_blocks(metric, most) == expected


@pytest.mark.parametrize(
    ("most", "groups", "where"),
    [
        (4, ((0, 2), (1,), (3,)), (0, 1, 2)),
        (2, ((0, 2), (1, 3)), (0, 1, 1)),
        (1, ((0, 1, 2, 3),), (0, 0, 0)),
    ],
)
def test_successive_groups_merge(most, groups, where):
    assert merged(((0, 2), (1,), (3,)), most) == (groups, where)


def test_a_small_batch_has_one_step_length_and_a_large_one_one_for_each_layer():
    """One group for 20 examples; the state has room for all."""
    model = ng.Model(
        lambda params, x: jnp.tanh(x @ params["a"]) @ params["b"],
        ng.families.NormalMean(0.5),
        example_inputs=X[:1],
    )
    params = {"a": jnp.eye(FEATURES), "b": jnp.ones((FEATURES, OUTPUTS))}
    tx = ng.scale_by_factored_curvature(ng.curvature.KFAC(model), damping=1.0)
    state = tx.init(params)

    @jax.jit
    def run(x, y):
        gradient = jax.grad(model.loss)(params, x, y)
        return tx.update(gradient, state, params, inputs=x)[1].step.coefficients

    small = run(X, Y)
    assert small.shape == (2, 2)
    np.testing.assert_array_equal(small[0], small[1])
    large = run(np.tile(X, (4, 1)), np.tile(Y, (4, 1)))
    assert abs(large[0, 0] / large[1, 0] - 1) > 1e-3

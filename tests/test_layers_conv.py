"""Statistics of convolutions: a few examples' patches at a time, and the same sums.

The oracle cuts patches out in NumPy, one output place after the other.
"""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad import layers
from natgrad.curvature import KFAC, Sampled

KEY = jax.random.PRNGKey(0)


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape)


def convolved(p, x, stride, groups):
    return jax.lax.conv_general_dilated(
        x,
        p["w"],
        (stride, stride),
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )


def moments(x, g, window, stride, groups):
    """A and G of each group by loops over examples and places."""
    inputs, outputs = x.shape[-1] // groups, g.shape[-1] // groups
    size = window * window * inputs
    a, b = np.zeros((groups, size, size)), np.zeros((groups, outputs, outputs))
    gradient = np.zeros((groups, size, outputs))
    squares = np.zeros((groups, size, outputs))
    for n in range(len(x)):
        each = np.zeros((groups, size, outputs))
        for i, j in itertools.product(range(g.shape[1]), range(g.shape[2])):
            rows, columns = i * stride, j * stride
            patch = x[n, rows : rows + window, columns : columns + window]
            for k in range(groups):
                mine = patch[..., k * inputs : (k + 1) * inputs].reshape(-1)
                out = g[n, i, j, k * outputs : (k + 1) * outputs]
                a[k] += np.outer(mine, mine)
                b[k] += np.outer(out, out)
                each[k] += np.outer(mine, out)
        gradient, squares = gradient + each, squares + each**2
    return a, b, gradient, squares


@pytest.mark.parametrize(("examples", "stride", "groups"), [(7, 1, 1), (6, 2, 2)])
def test_sums_over_chunks_of_examples_are_those_of_a_loop(examples, stride, groups):
    """Seven examples leave a last chunk that is smaller; a group is a matrix."""
    window, channels = 3, 4
    params = {"w": jnp.asarray(normal(0, window, window, channels // groups, 6))}
    x = normal(1, examples, 6, 7, channels)
    apply = lambda p, x: convolved(p, x, stride, groups)
    captured = layers.capture(apply, params, x)
    wanted = {
        "factors": layers.Expand(),
        "gradient": layers.Gradient(),
        "squares": layers.Squares(),
    }
    pull = lambda p, x, g: captured.pull(wanted, p, x)[1](g)[1]
    g = normal(2, *jax.eval_shape(apply, params, x).shape)
    assert _count(jax.make_jaxpr(pull)(params, x, g).jaxpr, "scan") == 1
    found = jax.jit(pull)(params, x, g)["w"]
    a, b, gradient, squares = moments(x, g, window, stride, groups)
    shaped = lambda m: m if groups > 1 else m[0]
    close = lambda one, two: np.testing.assert_allclose(one, shaped(two), rtol=1e-10)
    close(found["factors"]["A"], a)
    close(found["factors"]["G"], b)
    close(found["gradient"], gradient)
    close(found["squares"], squares)
    assert found["factors"]["rows"] == examples * g.shape[1] * g.shape[2]


def _count(jaxpr, primitive):
    total = 0
    for equation in jaxpr.eqns:
        total += equation.primitive.name == primitive
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                total += _count(inner, primitive)
    return total


def test_factors_of_a_convolution_need_no_multiple_of_the_gradients_memory():
    """All 3×3 patches at once are nine signals; the gradient stores about five."""
    params = {
        "a": jnp.asarray(normal(0, 3, 3, 3, 16), "float32"),
        "b": jnp.asarray(normal(1, 3, 3, 16, 16), "float32"),
    }

    def apply(p, x):
        for name in ("a", "b"):
            x = jax.lax.conv_general_dilated(
                x, p[name], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = jnp.tanh(x)
        return jnp.mean(x, (1, 2))

    x = jnp.asarray(normal(2, 64, 16, 16, 3), "float32")
    y = jnp.asarray(normal(3, 64, 16), "float32")
    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x[:1])
    curvature = KFAC(model, Sampled(1))

    def temporary(function):
        program = jax.jit(function).lower(params, x, y).compile()
        return program.memory_analysis().temp_size_in_bytes

    gradient = temporary(jax.value_and_grad(model.loss))
    shared = temporary(lambda p, x, y: curvature.value_and_grad(p, x, y, KEY))
    assert gradient > 4 * 64 * 16 * 16 * 16 * 3
    assert shared < 1.5 * gradient

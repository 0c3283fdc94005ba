"""Gradient and factors from one pass: products counted, memory measured."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from kfac_problems import KEY, compiled, normal, products, temporary

import natgrad as ng
from natgrad.curvature import (
    KFAC,
    Empirical,
    Sampled,
)


def deep(layers, width, batch):
    """(model, params, x, y): dense layers with a nonlinearity between them."""
    params = [0.1 * normal(i, width, width).astype("float32") for i in range(layers)]

    def apply(params, x):
        for i, w in enumerate(params):
            x = x @ w if i == 0 else jnp.tanh(x) @ w
        return x

    x, y = (normal(9 + i, batch, width).astype("float32") for i in range(2))
    return ng.Model(apply, ng.families.NormalMean(), example_inputs=x), params, x, y


@pytest.mark.parametrize("layers", [3, 5])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [(Empirical(), lambda n: 5 * n - 1), (Sampled(1), lambda n: 6 * n - 2)],
    ids=["empirical", "sampled"],
)
def test_gradient_and_factors_take_one_pass(layers, labels, expected):
    """3L − 1 products of the gradient, 2L of the factors, L − 1 of a second pull."""
    model, params, x, y = deep(layers, 24, 48)
    curvature = KFAC(model, labels)
    program = compiled(
        lambda p, x, y: curvature.value_and_grad(p, x, y, KEY), params, x, y
    )
    assert products(program) == expected(layers)


def test_factors_store_nothing_of_the_size_of_the_batch():
    """Temporary memory is the gradient's within 5 %, however deep the network.

    Sampled labels add three arrays like the outputs, whatever the depth: the random
    bits of the labels are drawn while the gradient's residuals are kept.
    """
    batch, width = 8192, 16
    model, params, x, y = deep(10, width, batch)
    gradient = temporary(jax.value_and_grad(model.loss), params, x, y)

    def both(labels):
        curvature = KFAC(model, labels)
        shared = lambda p, x, y: curvature.value_and_grad(p, x, y, KEY)
        return temporary(shared, params, x, y)

    outputs = 4 * batch * width
    assert gradient > 10 * outputs
    assert both(Empirical()) < 1.05 * gradient
    assert both(Sampled(1)) < 1.05 * gradient + 3 * outputs

"""Examples to ignore: labels of −1 or −100, logits of −∞, NaN, in rows of weight 0."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input import CATEGORICAL, GRADS, PARAMS, N, X, Y, flat, refuses

import natgrad as ng
import natgrad.families as nf

IGNORED = 2
LONGER = np.concatenate([X, np.zeros((IGNORED, 2))])
MASK = np.array([1.0] * N + [0.0] * IGNORED)


def logits(params, inputs):
    """−∞ in every class where the mask is 0."""
    z = inputs["x"] @ params["w"] + params["b"][None]
    return jnp.where(inputs["mask"][:, None] > 0, z, -jnp.inf)


def model_of(count):
    """A model whose example inputs have so many rows, and its inputs."""
    inputs = {"x": LONGER[:count], "mask": MASK[:count]}
    model = ng.Model(
        logits,
        CATEGORICAL,
        example_inputs={"x": X[:1], "mask": MASK[:1]},
        weights=lambda inputs: inputs["mask"],
    )
    return model, inputs


@functools.cache
def figures(name, count):
    """y -> (loss, its gradient, the step of GRADS, skipped), compiled."""
    model, inputs = model_of(count)
    tx = ng.scale_by_curvature(ng.CURVATURES[name](model), damping=0.3)

    @jax.jit
    def compiled(y):
        value, gradient = jax.value_and_grad(model.loss)(PARAMS, inputs, y)
        step, state = tx.update(
            GRADS, tx.init(PARAMS), PARAMS, inputs=inputs, targets=y
        )
        return value, gradient, step, state.health.skipped

    return compiled


@pytest.mark.parametrize("name", ng.CURVATURES)
def test_ignored_rows_count_neither_in_the_loss_nor_in_any_curvature(name, tolerance):
    expected = figures(name, N)(Y)
    for ignore in (-1, -100):
        given = figures(name, N + IGNORED)(np.r_[Y, [ignore] * IGNORED])
        assert not given[-1]
        rtol = tolerance("iterative")
        np.testing.assert_allclose(flat(given), flat(expected), rtol, rtol)


def test_an_impossible_label_that_counts_is_named():
    model, inputs = model_of(N + IGNORED)
    with refuses("impossible under", "targets[1] = -1", "weight 0"):
        model.loss(PARAMS, inputs, np.array([0, -1, 1, 1, -1, -1]))
    assert np.isfinite(model.loss(PARAMS, inputs, np.array([0, 2, 1, 1, -1, -1])))


def test_kl_of_a_row_that_is_masked_whole_is_0():
    model, inputs = model_of(N + IGNORED)
    fewer, first = model_of(N)
    other = jax.tree.map(lambda leaf: 0.9 * leaf, PARAMS)
    value, slope = jax.jit(jax.value_and_grad(model.kl))(PARAMS, other, inputs)
    expected = jax.jit(jax.value_and_grad(fewer.kl))(PARAMS, other, first)
    np.testing.assert_allclose(flat((value, slope)), flat(expected), 1e-10, 1e-12)


def test_outputs_out_of_the_domain_do_no_harm_at_weight_0():
    apply = lambda params, inputs: -params * inputs["x"]  # 0 where x is: no rate
    model = ng.Model(apply, nf.Exponential(), weights=lambda inputs: inputs["mask"])
    inputs = {"x": jnp.array([1.0, 2, 0]), "mask": jnp.array([1.0, 1, 0])}
    y = jnp.array([0.5, 0.2, jnp.nan])
    rate = jnp.array(1.5)

    @jax.jit
    def everything(rate):
        value, slope = jax.value_and_grad(model.loss)(rate, inputs, y)
        matrices = [
            ng.curvature.Dense(model, labels).at(rate, inputs, y).dense()
            for labels in (ng.curvature.Exact(), ng.curvature.Empirical())
        ]
        return value, slope, *matrices

    x, t = np.array([1.0, 2.0]), np.array([0.5, 0.2])
    value = np.mean(1.5 * x * t - np.log(1.5 * x))
    scores = x * t - 1 / 1.5
    expected = value, np.mean(scores), 1 / 1.5**2, np.mean(scores**2)
    np.testing.assert_allclose(flat(everything(rate)), expected, rtol=1e-10)


def test_the_derivative_by_a_weight_of_0_is_that_of_the_examples_own_label():
    model = ng.Model(
        lambda params, inputs: inputs["x"] @ params["w"],
        CATEGORICAL,
        weights=lambda inputs: inputs["weights"],
    )
    weights = jnp.array([1.0, 0, 0, 0.5])
    loss = lambda w: model.loss(PARAMS, {"x": X, "weights": w}, Y)
    value, slope = jax.jit(jax.value_and_grad(loss))(weights)
    log_p = jax.nn.log_softmax(X @ PARAMS["w"])[np.arange(N), Y]
    np.testing.assert_allclose(slope, -(log_p + value) / 1.5, rtol=1e-10)


SIGNED = ng.Model(
    lambda params, inputs: inputs["x"] @ params["w"],
    CATEGORICAL,
    weights=lambda inputs: inputs["weights"],
)


@pytest.mark.parametrize("weights", [[1.0, -2, 1, 1], [-1.0, -1, -1, -1]])
def test_negative_weights_are_an_error_that_says_where_signs_belong(weights):
    inputs = {"x": X, "weights": np.array(weights)}
    words = "at least 0", f"got {min(weights)}", "advantage", "model.log_prob"
    for call in (
        lambda: SIGNED.loss(PARAMS, inputs, Y),
        lambda: jax.grad(SIGNED.loss)(PARAMS, inputs, Y),
        lambda: SIGNED.kl(PARAMS, PARAMS, inputs),
        lambda: ng.curvature.Dense(SIGNED).at(PARAMS, inputs),
        lambda: ng.curvature.Gram(SIGNED).at(PARAMS, inputs, key=jax.random.key(0)),
    ):
        with refuses(*words):
            call()


def test_negative_weights_skip_the_step_under_jit():
    inputs = {"x": X, "weights": np.array([1.0, -2, 1, 1])}
    tx = ng.natural_gradient(0.1, SIGNED)

    @jax.jit
    def step(grads, inputs):
        loss = SIGNED.loss(PARAMS, inputs, Y)
        return loss, *tx.update(grads, tx.init(PARAMS), PARAMS, inputs=inputs)

    loss, update, state = step(GRADS, inputs)
    assert np.isnan(loss)
    assert not np.any(flat(update))
    with refuses("was skipped", "negative weights", "model.loss(params, x, y)"):
        ng.check_health(state)


def test_weights_that_are_all_0_are_an_error_and_a_loss_of_0_under_jit():
    inputs = {"x": X, "weights": np.zeros(N)}
    with refuses("all 0", "0 examples", "Leave such a batch out"):
        SIGNED.loss(PARAMS, inputs, Y)
    value, gradient = jax.jit(jax.value_and_grad(SIGNED.loss))(PARAMS, inputs, Y)
    assert not np.any(flat((value, gradient)))

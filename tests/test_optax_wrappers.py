"""The transformations inside the wrappers of optax."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    BIAS,
    LAMBDA,
    MODEL,
    RATE,
    WEIGHT,
    X,
    Y,
    blocks,
    curvature_of,
    damped_solve,
    describe,
    draw,
    equal,
    expected_matrix,
    find,
    flat,
    gradient_of,
    jitted_update,
    oracle,
    start,
)

import natgrad as ng


# The eigenbasis of a part is not part of the eigenbasis, so there is no ekfac here.
@pytest.mark.parametrize("name", sorted(ng.CURVATURES.keys() - {"ekfac", "kfoc"}))
def test_masked_solves_with_the_principal_submatrix(name, tolerance):
    params, grads = start(), gradient_of(start())
    inner = ng.scale_by_curvature(curvature_of(name), damping=LAMBDA)
    of_part = ng.CURVATURES[name](MODEL.with_frozen(params))
    masked = ng.scale_by_curvature(of_part, damping=LAMBDA)
    tx = optax.masked(masked, {"w": True, "b": False})

    @jax.jit
    def both(state, whole_state):
        batch = {"inputs": X, "targets": Y}
        part = tx.update(grads, state, params, model_params=params, **batch)
        return part, inner.update(grads, whole_state, params, **batch)[1]

    (updates, state), whole = both(tx.init(params), inner.init(params))
    matrix = expected_matrix(name, params, whole)[WEIGHT, WEIGHT]
    expected = damped_solve(matrix, oracle(params).gradient[WEIGHT])
    np.testing.assert_allclose(updates["w"].ravel(), expected, tolerance("solve"))
    np.testing.assert_array_equal(updates["b"], grads["b"])
    assert describe(state) == describe(tx.init(params))


def test_multi_transform_leaves_the_other_part_to_sgd(tolerance):
    tx = optax.multi_transform(
        {
            "natural": ng.natural_gradient(
                RATE, MODEL, trust_region=None, damping=LAMBDA
            ),
            "plain": optax.sgd(0.2),
        },
        {"w": "natural", "b": "plain"},
    )
    params, known = start(), oracle(start())
    updates, _ = jitted_update(tx, inputs=X)(
        gradient_of(params), tx.init(params), params, model_params=params
    )
    step = damped_solve(known.fisher[WEIGHT, WEIGHT], known.gradient[WEIGHT])
    rtol = tolerance("solve")
    np.testing.assert_allclose(updates["w"].ravel(), -RATE * step, rtol)
    np.testing.assert_allclose(updates["b"], -0.2 * known.gradient[BIAS], rtol)


def test_a_natural_gradient_for_each_leaf_is_the_block_diagonal_one(tolerance):
    alone = ng.natural_gradient(RATE, MODEL, trust_region=None, damping=LAMBDA)
    tx = optax.multi_transform({"w": alone, "b": alone}, {"w": "w", "b": "b"})
    params, known = start(), oracle(start())
    updates, _ = jitted_update(tx, inputs=X)(
        gradient_of(params), tx.init(params), params, model_params=params
    )
    step = -RATE * damped_solve(blocks(known.fisher), known.gradient)
    np.testing.assert_allclose(flat(updates), step, tolerance("solve"))


def micro_batches(count=3):
    return [draw(seed) for seed in range(count)]


def test_multi_steps_averages_gradients_and_steps_on_the_last_micro_batch(tolerance):
    natural = ng.natural_gradient(RATE, MODEL, trust_region=None, damping=LAMBDA)
    tx = optax.MultiSteps(natural, every_k_schedule=3)
    params = start()
    state, update = tx.init(params), jitted_update(tx)
    before = describe(state)
    for k, (x, y) in enumerate(micro_batches()):
        updates, state = update(gradient_of(params, x, y), state, params, inputs=x)
        assert describe(state) == before
        assert find(state).count == (k == 2)
        if k < 2:
            assert not np.any(flat(updates))
    known = [oracle(params, *batch) for batch in micro_batches()]
    gradient = np.mean([batch.gradient for batch in known], axis=0)
    step = -RATE * damped_solve(known[-1].fisher, gradient)
    np.testing.assert_allclose(flat(updates), step, tolerance("identity", "float32"))


def test_multi_steps_with_mean_statistics_is_the_step_of_the_whole_batch(tolerance):
    curvature = curvature_of("dense")
    tx = optax.MultiSteps(
        ng.scale_by_curvature(curvature, damping=LAMBDA), every_k_schedule=3
    )
    params = start()

    @jax.jit
    def whole(state):
        total = curvature.init(params)
        for k, (x, y) in enumerate(micro_batches()):
            _, grads, statistics = curvature.value_and_grad(params, x, y)
            total = total + statistics
            mean = total / (k + 1)
            updates, state = tx.update(grads, state, params, statistics=mean)
        return updates

    x, y = (np.concatenate(part) for part in zip(*micro_batches(), strict=True))
    known = oracle(params, x, y)
    np.testing.assert_allclose(
        flat(whole(tx.init(params))),
        damped_solve(known.fisher, known.gradient),
        tolerance("identity", "float32"),  # MultiSteps accumulates in float32
    )


def test_apply_if_finite_rejects_a_bad_step_without_a_trace(tolerance):
    natural = ng.natural_gradient(
        RATE, MODEL, trust_region=None, damping=LAMBDA, decay=0.5
    )
    tx = optax.apply_if_finite(natural, max_consecutive_errors=3)
    params, grads = start(), gradient_of(start())
    update = jitted_update(tx, inputs=X)
    _, good = update(grads, tx.init(params), params)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    updates, after = update(bad, good, params)
    assert not np.any(flat(updates))
    assert after.total_notfinite == 1
    equal(after.inner_state, good.inner_state, 0)
    equal(update(grads, after, params)[0], update(grads, good, params)[0], 0)


def test_a_chain_with_clipping_decay_and_momentum_is_their_composition(tolerance):
    tx = optax.chain(
        optax.clip(0.05),
        optax.add_decayed_weights(0.1),
        ng.scale_by_curvature(curvature_of("dense"), damping=LAMBDA),
        optax.trace(0.9),
        optax.scale_by_learning_rate(RATE),
    )
    params, momentum = start(), 0.0
    state, update = tx.init(params), jitted_update(tx, inputs=X)
    for _ in range(3):
        known = oracle(params)
        gradient = np.clip(known.gradient, -0.05, 0.05) + 0.1 * flat(params)
        momentum = 0.9 * momentum + damped_solve(known.fisher, gradient)
        updates, state = update(gradient_of(params), state, params)
        np.testing.assert_allclose(flat(updates), -RATE * momentum, tolerance("solve"))
        params = optax.apply_updates(params, updates)


def test_a_line_search_in_the_same_chain_gets_its_own_arguments(tolerance):
    tx = optax.chain(
        ng.scale_by_curvature(curvature_of("dense"), damping=1e-3),
        optax.scale(-8.0),  # far too long: the search must shorten it
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=30),
    )
    loss_of = lambda params, inputs: MODEL.loss(params, inputs, Y)
    params = start()
    value, grads = jax.value_and_grad(loss_of)(params, X)
    more = {"value": value, "grad": grads, "value_fn": loss_of}
    update = functools.partial(tx.update, inputs=X, **more)
    updates, _ = jax.jit(update)(grads, tx.init(params), params)
    known = oracle(params)
    direction = damped_solve(known.fisher, known.gradient, 1e-3)
    ratio = flat(updates) / -direction
    np.testing.assert_allclose(ratio, ratio[0], tolerance("identity", "float32"))
    assert 0 < ratio[0] < 8
    assert loss_of(optax.apply_updates(params, updates), X) < value

"""Every curvature is a drop-in optax transformation: its step, its state, its loop.

Each contract is tested by what it means; the oracle stands in `contract`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    EVERY,
    LAMBDA,
    MODEL,
    RATE,
    TRACES,
    WEIGHT,
    X,
    Y,
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
    programs,
    start,
    transformation,
)

import natgrad as ng


@EVERY
def test_an_update_is_the_damped_solve_of_the_batch_metric(name, tolerance):
    params, state = start(), transformation(name).init(start())
    stepped, state = programs(name).step(params, state, LAMBDA, RATE)
    matrix = expected_matrix(name, params, find(state))
    step = damped_solve(matrix, oracle(params).gradient)
    rtol = tolerance("solve")
    np.testing.assert_allclose(flat(params) - flat(stepped), RATE * step, rtol=rtol)
    health = optax.tree.get(state, "health")
    assert health.damping == LAMBDA
    assert not health.skipped
    assert health.residual < rtol
    decrease = oracle(params).gradient @ step - step @ matrix @ step / 2
    np.testing.assert_allclose(health.predicted_decrease, decrease, rtol=rtol)


@EVERY
def test_the_state_keeps_its_structure_and_the_step_is_traced_once(name):
    params, state = start(), transformation(name).init(start())
    before = describe((params, state))
    traces = []
    for k in range(5):
        params, state = programs(name).step(params, state, LAMBDA, RATE)
        traces.append(TRACES[name])
        assert describe((params, state)) == before
        assert find(state).count == k + 1
    assert traces == traces[:1] * 5


@EVERY
def test_100_scanned_steps_of_vmapped_members_are_python_loops(name, tolerance):
    seeds = jnp.arange(4)
    dampings, rates = jnp.geomspace(0.05, 2.0, 4), jnp.linspace(0.1, 0.8, 4)
    params, state = programs(name).batched(seeds, dampings, rates)
    for member, seed in enumerate(seeds):
        alone, its_state = start(), transformation(name, seed=seed).init(start())
        its_own = float(dampings[member]), float(rates[member])
        for _ in range(100):
            alone, its_state = programs(name).step(alone, its_state, *its_own)
        of_member = lambda leaf, member=member: leaf[member]
        equal(jax.tree.map(of_member, params), alone, tolerance("solve"))
        assert describe(jax.tree.map(of_member, state)) == describe(its_state)
        assert jnp.array_equal(find(state).key[member], find(its_state).key)
    assert len(np.unique(np.round(params["w"][:, 0, 0], 6))) == 4


@pytest.mark.parametrize("name", ["sampled"])
def test_a_scan_over_100_steps_is_the_python_loop(name, tolerance):
    params, state = start(), transformation(name, seed=3).init(start())
    for _ in range(100):
        params, state = programs(name).step(params, state, LAMBDA, RATE)
    scanned = jax.jit(programs(name).run)(3, LAMBDA, RATE)
    equal(params, scanned[0], tolerance("solve"))
    assert find(scanned[1]).count == 100


# Three spellings of one step --------------------------------------------------------


@EVERY
def test_statistics_and_observe_give_the_update_that_inputs_give(name, tolerance):
    curvature = curvature_of(name)
    tx = transformation(name)

    @jax.jit
    def three(params, state):
        grads = gradient_of(params)
        key = ng.tree.next_key(find(state).key)
        loss, same_grads, statistics = curvature.value_and_grad(params, X, Y, key)
        batch = {"inputs": X, "targets": Y} if curvature.requires_batch else {}
        given = tx.update(grads, state, params, inputs=X, targets=Y)
        fast = tx.update(same_grads, state, params, statistics=statistics, **batch)
        if curvature.requires_batch:
            return given, fast, given, (loss, same_grads)
        seen = ng.observe(curvature, state, params, inputs=X, targets=Y)
        return given, fast, tx.update(grads, seen, params), (loss, same_grads)

    params = start()
    given, fast, seen, (loss, grads) = three(params, tx.init(params))
    equal(given[0], fast[0], tolerance("solve"))
    equal(given[0], seen[0], tolerance("solve"))
    assert describe(given) == describe(fast) == describe(seen)
    np.testing.assert_allclose(loss, MODEL.loss(params, X, Y))
    equal(grads, gradient_of(params), tolerance("identity"))


def test_a_plain_update_keeps_using_what_was_observed_last(tolerance):
    curvature = curvature_of("dense")
    tx = ng.scale_by_curvature(curvature, damping=LAMBDA)
    params, other = start(), draw(9)[0]
    state = tx.init(params)
    see = jax.jit(lambda state, x: ng.observe(curvature, state, params, inputs=x))
    for x in (X, other):
        state = see(state, x)
    plain = jitted_update(tx)
    for _ in range(2):
        step, state = plain(gradient_of(params), state, params)
        expected = damped_solve(oracle(params, other).fisher, oracle(params).gradient)
        np.testing.assert_allclose(flat(step), expected, tolerance("solve"))
    assert find(state).estimates == 2
    assert find(state).count == 2


def test_observe_finds_the_curvature_however_deep_the_state(tolerance):
    curvature = curvature_of("dense")
    inner = lambda learning_rate, damping: optax.chain(
        optax.identity(),
        ng.scale_by_curvature(curvature, damping=damping),
        optax.scale_by_learning_rate(learning_rate),
    )
    tx = optax.MultiSteps(
        optax.chain(
            optax.add_decayed_weights(0.0),
            optax.inject_hyperparams(inner)(learning_rate=RATE, damping=LAMBDA),
        ),
        every_k_schedule=2,
    )

    @jax.jit
    def two(params, state):
        grads = gradient_of(params)
        for _ in range(2):
            state = ng.observe(curvature, state, params, inputs=X)
            updates, state = tx.update(grads, state, params)
        return updates, state

    params = start()
    updates, state = two(params, tx.init(params))
    known = oracle(params)
    step = -RATE * damped_solve(known.fisher, known.gradient)
    rtol = tolerance("identity", "float32")  # MultiSteps accumulates in float32
    np.testing.assert_allclose(flat(updates), step, rtol)
    assert describe(state) == describe(tx.init(params))


def test_observe_refreshes_a_masked_part(tolerance):
    curvature = curvature_of("dense")
    tx = optax.masked(
        ng.scale_by_curvature(curvature, damping=LAMBDA), {"w": True, "b": False}
    )
    params = start()
    part = {"w": params["w"], "b": optax.MaskedNode()}

    @jax.jit
    def update(state):
        seen = ng.observe(curvature, state, part, inputs=X, model_params=params)
        return tx.update(gradient_of(params), seen, params, model_params=params)

    step, _ = update(tx.init(params))
    known = oracle(params)
    expected = damped_solve(known.fisher[WEIGHT, WEIGHT], known.gradient[WEIGHT])
    np.testing.assert_allclose(step["w"].ravel(), expected, tolerance("solve"))

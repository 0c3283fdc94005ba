"""Moving averages, schedules, keys and injected hyperparameters of the optax code."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    ALIASES,
    EVERY_ALIAS,
    EXPECTED,
    LAMBDA,
    MODEL,
    RATE,
    STANDS_FOR,
    X,
    Y,
    curvature_of,
    damped_solve,
    describe,
    draw,
    equal,
    find,
    flat,
    gradient_of,
    jitted_update,
    oracle,
    start,
)

import natgrad as ng

# Moving average, schedules, keys ----------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "diagonal"])
def test_decay_is_an_average_with_bias_correction(name, tolerance):
    decay, params = 0.7, start()
    tx = ng.scale_by_curvature(curvature_of(name), damping=LAMBDA, decay=decay)
    state, average, weight = tx.init(params), 0.0, 0.0
    update = jitted_update(tx)
    for k in range(5):
        x, y = draw(k)
        known = oracle(params, x, y)
        average = decay * average + (1 - decay) * EXPECTED[name](known)
        weight = decay * weight + (1 - decay)
        step, state = update(gradient_of(params, x, y), state, params, inputs=x)
        expected = damped_solve(average / weight, known.gradient)
        np.testing.assert_allclose(flat(step), expected, tolerance("solve"))
        params = optax.apply_updates(params, jax.tree.map(jnp.negative, step))
    assert find(state).estimates == 5


def test_a_damping_schedule_sees_the_count_of_steps(tolerance):
    schedule = lambda count: 0.1 * (count + 1)
    tx = ng.scale_by_curvature(curvature_of("dense"), damping=schedule)
    params = start()
    state, update, known = tx.init(params), jitted_update(tx, inputs=X), oracle(params)
    for k in range(3):
        step, state = update(gradient_of(params), state, params)
        expected = damped_solve(known.fisher, known.gradient, schedule(k))
        np.testing.assert_allclose(flat(step), expected, tolerance("solve"))
        np.testing.assert_allclose(state.health.damping, schedule(k))


@EVERY_ALIAS
def test_an_alias_takes_schedules_of_damping_and_learning_rate(alias, tolerance):
    rates = optax.linear_schedule(0.5, 0.1, 4)
    dampings = optax.exponential_decay(1.0, 1, 0.5)
    scheduled = ALIASES[alias](rates, MODEL, damping=dampings)

    @jax.jit
    def both(params, state, rate, damping):
        grads, batch = gradient_of(params), {"inputs": X, "targets": Y}
        constant = ALIASES[alias](rate, MODEL, damping=damping)
        as_constant = (state[0], *constant.init(params)[1:])
        expected, _ = constant.update(grads, as_constant, params, **batch)
        updates, state = scheduled.update(grads, state, params, **batch)
        return updates, state, expected

    params = start()
    state = scheduled.init(params)
    for k in range(3):
        updates, state, expected = both(
            params, state, rates(jnp.int32(k)), dampings(jnp.int32(k))
        )
        equal(updates, expected, tolerance("solve"))
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_labels_differ_by_step_and_by_seed_and_are_reproducible(draws):
    sampled = ng.curvature.Dense(MODEL, ng.curvature.Sampled(draws))
    params, grads = start(), gradient_of(start())
    many = jnp.tile(X, (6, 1))  # or two draws of all labels may well be the same
    update = jitted_update(ng.scale_by_curvature(sampled), inputs=many)

    def history(seed):
        state, seen = ng.scale_by_curvature(sampled, seed=seed).init(params), []
        for _ in range(3):
            _, state = update(grads, state, params)
            seen.append((np.asarray(state.key), np.asarray(state.statistics)))
        return seen

    first, again, other = history(0), history(0), history(1)
    for (key, drawn), (same_key, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(key, same_key)
        np.testing.assert_array_equal(drawn, same)
    distinct = [drawn for _, drawn in (*first, *other)]
    for i in range(len(distinct)):
        for j in range(i):
            assert not np.allclose(distinct[i], distinct[j])


# Injected hyperparameters ------------------------------------------------------------


@EVERY_ALIAS
def test_injected_hyperparameters_are_those_of_a_direct_construction(alias, tolerance):
    tx = optax.inject_hyperparams(ALIASES[alias])(RATE, MODEL, damping=LAMBDA)
    params = start()
    state = tx.init(params)
    before, traces = describe(state), 0

    @jax.jit
    def both(state):
        nonlocal traces
        traces += 1
        grads, batch = gradient_of(params), {"inputs": X, "targets": Y}
        direct = ALIASES[alias](0.05, MODEL, damping=0.7)
        expected, _ = direct.update(grads, direct.init(params), params, **batch)
        return tx.update(grads, state, params, **batch), expected

    (first, _), _ = both(state)
    state.hyperparams["learning_rate"] = jnp.array(0.05, float)
    state.hyperparams["damping"] = jnp.array(0.7, float)
    (updates, state), expected = both(state)
    equal(updates, expected, tolerance("solve"))
    assert not np.allclose(flat(first), flat(updates))
    if alias in STANDS_FOR:
        matrix = EXPECTED[STANDS_FOR[alias]](oracle(params))
        step = -0.05 * damped_solve(matrix, oracle(params).gradient, 0.7)
        np.testing.assert_allclose(flat(updates), step, tolerance("solve"))
    assert describe(state) == before
    assert traces == 1


def test_an_injected_decay_and_seed_are_those_of_a_direct_construction(tolerance):
    sampled = curvature_of("sampled")
    injected = optax.inject_hyperparams(ng.scale_by_curvature)(
        sampled, damping=LAMBDA, decay=0.8, seed=5
    )
    direct = ng.scale_by_curvature(sampled, damping=LAMBDA, decay=0.8, seed=5)
    params = start()
    states, updates = [], []
    for tx in (injected, direct):
        state, update = tx.init(params), jitted_update(tx)
        for k in range(2):
            step, state = update(gradient_of(params), state, params, inputs=draw(k)[0])
        states.append(find(state))
        updates.append(step)
    equal(*updates, tolerance("solve"))
    equal(*states, tolerance("solve"))


def test_an_instantaneous_curvature_can_have_its_damping_injected(tolerance):
    matrix_free = curvature_of("matrix_free")
    tx = optax.inject_hyperparams(ng.scale_by_curvature, static_args="decay")(
        matrix_free, damping=LAMBDA
    )
    params, known = start(), oracle(start())
    state = tx.init(params)
    step, _ = jitted_update(tx, inputs=X)(gradient_of(params), state, params)
    expected = damped_solve(known.fisher, known.gradient)
    np.testing.assert_allclose(flat(step), expected, tolerance("solve"))

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


WITH_REGION = {"natural_gradient", "march", "spring"}


@EVERY_ALIAS
def test_injected_hyperparameters_of_an_alias_are_schedules_by_hand(alias, tolerance):
    """And the first step is the damped solve, where its matrix is known."""
    schedules = {
        "learning_rate": optax.linear_schedule(0.05, 0.01, 4),
        "damping": optax.exponential_decay(1.0, 1, 0.5),
    }
    rates, dampings = schedules.values()
    # The trust region, which takes the learning rate too, is the same of all aliases.
    region = {} if alias in WITH_REGION else {"trust_region": None}
    scheduled = ALIASES[alias](rates, MODEL, damping=dampings, **region)
    make = optax.inject_hyperparams(ALIASES[alias])
    injected = make(RATE, MODEL, damping=LAMBDA, **region)
    params, traces = start(), 0
    states = [tx.init(params) for tx in (scheduled, injected)]
    before = describe(states[1])

    @jax.jit
    def both(params, states):
        nonlocal traces
        traces += 1
        grads, batch = gradient_of(params), {"inputs": X, "targets": Y}
        given = [
            tx.update(grads, state, params, **batch)
            for tx, state in zip((scheduled, injected), states, strict=True)
        ]
        return tuple(zip(*given, strict=True))

    def step(k, **changed):
        known = {name: float(of(jnp.int32(k))) for name, of in schedules.items()}
        for name, value in (known | changed).items():
            states[1].hyperparams[name] = jnp.array(value, float)
        (by_schedule, by_hand), after = both(params, states)
        return known, by_schedule, by_hand, list(after)

    for name in schedules:
        _, by_schedule, by_hand, _ = step(0, **{name: 0.07})
        assert not np.allclose(flat(by_schedule), flat(by_hand))
    for k in range(3):
        known, by_schedule, by_hand, states = step(k)
        equal(by_schedule, by_hand, tolerance("solve"))
        if k == 0 and alias in STANDS_FOR:
            batch, damping = oracle(params), known["damping"]
            matrix = EXPECTED[STANDS_FOR[alias]](batch)
            expected = damped_solve(matrix, batch.gradient, damping)
            expected = -known["learning_rate"] * expected
            np.testing.assert_allclose(flat(by_hand), expected, tolerance("solve"))
        assert describe(states[1]) == before
        params = optax.apply_updates(params, by_schedule)
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

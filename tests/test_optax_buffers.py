"""Buffers, precision and checkpoints of the optax state."""

from __future__ import annotations

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from contract import (
    EVERY,
    LAMBDA,
    RATE,
    X,
    Y,
    curvature_of,
    damped_solve,
    describe,
    equal,
    flat,
    gradient_of,
    jitted_update,
    oracle,
    programs,
    start,
    transformation,
)
from flax import serialization

import natgrad as ng


def test_donated_states_give_the_same_steps(tolerance):
    curvature = curvature_of("dense")
    tx = ng.scale_by_curvature(curvature, damping=LAMBDA, decay=0.5)

    def step(params, state):
        grads = gradient_of(params)
        updates, state = tx.update(grads, state, params, inputs=X)
        state = ng.observe(curvature, state, params, inputs=X)
        return jax.tree.map(jnp.subtract, params, updates), state

    results = []
    for donated in ((), (0, 1)):
        program = jax.jit(step, donate_argnums=donated)
        params, state = start(), tx.init(start())
        for _ in range(3):
            old = params, state
            params, state = program(params, state)
            reused = old[0], old[1].statistics, old[1].count
            for leaf in jax.tree.leaves(reused):
                assert leaf.is_deleted() == bool(donated)
        results.append((params, state))
    equal(*results, 0)


def dtypes(tree):
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if floating(leaf)}


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_parameters_keep_float32_statistics_under_x64(name, dtype):
    tx = transformation(name)

    def step(params, x, y):
        state = tx.init(params)
        grads = gradient_of(params, x, y)
        return state, *tx.update(grads, state, params, inputs=x, targets=y)

    x = jax.ShapeDtypeStruct(X.shape, dtype)
    before, updates, after = jax.eval_shape(
        step, jax.eval_shape(lambda: start(dtype)), x, Y
    )
    assert dtypes(updates) == {dtype}
    assert dtypes(before) == dtypes(after) == {"float32"}
    assert describe(before) == describe(after)


def test_a_bfloat16_step_is_the_float32_step_rounded():
    tx = ng.scale_by_curvature(curvature_of("dense"), damping=LAMBDA)
    params = start(jnp.bfloat16)
    grads = jax.tree.map(lambda leaf: leaf / 8, params)
    updates, state = jitted_update(tx)(grads, tx.init(params), params, inputs=X)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rounding = float(jnp.finfo(jnp.bfloat16).eps)
    fisher = oracle(exact).fisher
    np.testing.assert_allclose(state.statistics, fisher, atol=2 * rounding)
    expected = damped_solve(np.asarray(state.statistics, np.float64), flat(exact) / 8)
    np.testing.assert_allclose(flat(updates).astype(float), expected, rounding)


def through_pickle(state, _):
    return pickle.loads(pickle.dumps(state))


def through_flax(state, _):
    restored = serialization.from_bytes(state, serialization.to_bytes(state))
    return jax.tree.map(jnp.asarray, restored)


def through_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "state", jax.eval_shape(lambda: state))


@pytest.mark.parametrize("name", ["sampled", "matrix_free"])
@pytest.mark.parametrize("trip", [through_pickle, through_flax, through_orbax])
def test_training_continues_identically_from_a_checkpoint(name, trip, tmp_path):
    params, state = start(), transformation(name).init(start())
    step = programs(name).step
    for _ in range(2):
        params, state = step(params, state, LAMBDA, RATE)
    restored_params, restored = trip((params, state), tmp_path)
    assert describe(restored) == describe(state)
    for _ in range(2):
        params, state = step(params, state, LAMBDA, RATE)
        restored_params, restored = step(restored_params, restored, LAMBDA, RATE)
    equal((params, state), (restored_params, restored), 0)

"""Pieces that judge a step by the quadratic model: against dense algebra and NumPy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import (
    LAMBDA,
    MODEL,
    X,
    Y,
    damped_solve,
    equal,
    flat,
    gradient_of,
    oracle,
    start,
    tree_of,
)

import natgrad as ng

DECAY = 0.05  # η, of ½ η |θ|² beside the model's loss
loss_of = jax.jit(MODEL.loss)


def directions(count):
    rng = np.random.default_rng(3)
    return [rng.normal(size=flat(start()).size) for _ in range(count)]


# The quadratic model ------------------------------------------------------------------

RESCALED = ng.scale_by_quadratic_model(MODEL, damping=LAMBDA, weight_decay=DECAY)
rescaled = jax.jit(
    lambda u, state, params, grad: RESCALED.update(
        u, state, params, inputs=X, grad=grad
    )
)


def test_learning_rate_and_momentum_solve_the_two_dense_equations(tolerance):
    params, state = start(), RESCALED.init(start())
    known, before = oracle(params), np.zeros(flat(start()).size)
    matrix = known.fisher + (LAMBDA + DECAY) * np.eye(len(before))
    for u in directions(3):
        span = np.stack([u, before], 1)
        expected = -np.linalg.pinv(span.T @ matrix @ span) @ span.T @ known.gradient
        moved, state = rescaled(tree_of(u), state, params, gradient_of(params))
        rtol = tolerance("solve")
        np.testing.assert_allclose(state.coefficients[0], expected, rtol, 1e-12)
        before = span @ expected
        np.testing.assert_allclose(flat(moved), before, rtol)
        decrease = -known.gradient @ before - before @ matrix @ before / 2
        np.testing.assert_allclose(state.predicted_decrease, decrease, rtol)


def test_a_direction_that_is_no_direction_moves_nothing():
    params, state = start(), RESCALED.init(start())
    _, state = rescaled(tree_of(directions(1)[0]), state, params, gradient_of(params))
    for scale in (0.0, jnp.nan):
        u = jax.tree.map(lambda leaf, s=scale: s * leaf, gradient_of(params))
        moved, after = rescaled(u, state, params, gradient_of(params))
        assert not np.any(flat(moved))
        equal(after.update, state.update, 0)


def test_a_direction_parallel_to_the_last_step_repeats_it(tolerance):
    params, state = start(), RESCALED.init(start())
    (u,) = directions(1)
    first, state = rescaled(tree_of(u), state, params, gradient_of(params))
    second, _ = rescaled(tree_of(3 * u), state, params, gradient_of(params))
    equal(first, second, tolerance("identity"))


def test_each_group_has_its_learning_rate_and_momentum(tolerance):
    tx = ng.scale_by_quadratic_model(
        MODEL, damping=LAMBDA, weight_decay=DECAY, groups={"w": "first", "b": "second"}
    )
    step = jax.jit(lambda u, s, p, g: tx.update(u, s, p, inputs=X, grad=g))
    params, state = start(), tx.init(start())
    known, before = oracle(params), np.zeros(flat(start()).size)
    matrix = known.fisher + (LAMBDA + DECAY) * np.eye(len(before))
    biases = flat({"w": 0 * start()["w"], "b": 0 * start()["b"] + 1}) == 1
    for u in directions(3):
        span = np.stack([u * biases, before * biases, u * ~biases, before * ~biases], 1)
        expected = span @ -np.linalg.pinv(span.T @ matrix @ span) @ span.T
        expected = expected @ known.gradient
        moved, state = step(tree_of(u), state, params, gradient_of(params))
        np.testing.assert_allclose(flat(moved), expected, tolerance("solve"))
        decrease = -known.gradient @ expected - expected @ matrix @ expected / 2
        rtol = tolerance("solve")
        np.testing.assert_allclose(state.predicted_decrease, decrease, rtol)
        assert state.coefficients.shape == (2, 2)
        before = expected


def test_a_part_of_the_batch_is_every_kth_example(tolerance):
    tx = ng.scale_by_quadratic_model(MODEL, sub_batch=3)
    params, (u,) = start(), directions(1)
    state = tx.init(params)._replace(count=jnp.array(1))
    step = jax.jit(lambda u, s, p, g: tx.update(u, s, p, inputs=X, grad=g))
    moved, _ = step(tree_of(u), state, params, gradient_of(params))
    fisher = oracle(params, X[1::3], Y[1::3]).fisher
    gradient = oracle(params).gradient
    expected = -(gradient @ u) / (u @ fisher @ u) * u
    np.testing.assert_allclose(flat(moved), expected, tolerance("solve"))


@pytest.mark.parametrize("groups", [{"w": 0}, [1, 2]])
def test_groups_that_are_none_of_the_parameters_are_named(groups):
    tx = ng.scale_by_quadratic_model(MODEL, groups=groups)
    with pytest.raises(ValueError, match="groups must be a tree of labels"):
        tx.init(start())


@pytest.mark.parametrize("radius", [1e-3, 1e3])
def test_the_trust_region_bounds_the_dense_quadratic_form(radius, tolerance):
    tx = ng.scale_by_kl_trust_region(MODEL, radius)
    params, (u,) = start(), directions(1)
    update = jax.jit(functools.partial(tx.update, inputs=X))
    moved, _ = update(tree_of(u), tx.init(params), params)
    whole = u @ oracle(params).fisher @ u / 2
    shrink = min(1, np.sqrt(radius / whole))
    np.testing.assert_allclose(flat(moved), shrink * u, tolerance("identity"))


# Geodesic acceleration ----------------------------------------------------------------

BENT = ng.Model(  # softmax regression of squared parameters: z is not linear in them
    lambda params, x: MODEL.apply(jax.tree.map(lambda p: p + p**2 / 4, params), x),
    ng.families.Categorical(),
    example_inputs=X[:1],
)


@pytest.mark.parametrize("limit", [10.0, 0.0])
def test_the_acceleration_solves_for_the_bent_outputs(limit, tolerance):
    dense = ng.curvature.Dense(BENT)
    inner = ng.scale_by_curvature(dense, damping=LAMBDA)
    tx = ng.geodesic_acceleration(inner, BENT, limit=limit)
    params = start()
    gradient = jax.grad(BENT.loss)(params, X, Y)
    update = jax.jit(functools.partial(tx.update, inputs=X))
    moved, state = update(gradient, tx.init(params), params)

    outputs = jax.jit(lambda vector: BENT.apply(tree_of(vector), X))
    theta, J = flat(params), jax.jacobian(outputs)(flat(params))
    p = np.asarray(jax.nn.softmax(outputs(theta)))
    in_z = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    fisher = np.einsum("ncp,ncd,ndq->pq", J, in_z, J) / len(X)
    v = -damped_solve(fisher, flat(gradient))
    h = 1e-3
    second = (
        outputs(theta + h * v) - 2 * outputs(theta) + outputs(theta - h * v)
    ) / h**2
    a = -damped_solve(fisher, np.einsum("ncp,ncd,nd->p", J, in_z, second) / len(X))
    ratio = np.linalg.norm(a) / np.linalg.norm(v)
    assert ratio > 0.01
    rtol = tolerance("differences")
    np.testing.assert_allclose(state.ratio, ratio, rtol)
    expected = -(v + a / 2) if ratio <= limit else -v
    np.testing.assert_allclose(flat(moved), expected, rtol)

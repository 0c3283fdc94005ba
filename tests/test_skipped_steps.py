"""What only the running program can know makes a skipped step.

Under jit the values are unknown, so a bad value makes a skipped step: the update is 0,
what the state has learned stays, and `health` says so.
"""

from __future__ import annotations

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input import CLASSES, DENSE, GRADS, LAMBDA, MODEL, PARAMS, TX, N, X, Y, flat
from problems import dense_of

import natgrad as ng

EVERY = pytest.mark.parametrize("name", ng.CURVATURES)
NAN_X = np.where(np.arange(N)[:, None] == 2, np.nan, X)
NAN_GRADS = {**GRADS, "b": jnp.array([0.0, np.nan, 0.0])}
# What differs from a good step: gradient, inputs, labels, damping.
BAD = {
    "a gradient with a nan": {"grads": NAN_GRADS},
    "an infinite gradient": {"grads": {**GRADS, "w": GRADS["w"] + np.inf}},
    "inputs with a nan": {"x": NAN_X},
    "negative damping": {"damping": -0.1},
    "nan damping": {"damping": np.nan},
    "infinite damping": {"damping": np.inf},
}
AT_THE_LABELS = {"a label out of range": {"y": np.array([0, 1, CLASSES, 2])}}


@functools.cache
def program(name):
    """update(state, grads, x, y, damping), compiled; averaging where it can be."""
    curvature = ng.CURVATURES[name](MODEL)
    decay = 0.0 if curvature.requires_batch else 0.5

    def of(damping):
        return ng.scale_by_curvature(curvature, damping=damping, decay=decay)

    @jax.jit
    def compiled(state, grads, x, y, damping):
        tx = of(damping)
        return tx.update(grads, state, PARAMS, inputs=x, targets=y)

    def update(state, grads=GRADS, x=X, y=Y, damping=LAMBDA):
        return compiled(state, grads, x, y, damping)  # one program for all of them

    return update, of(LAMBDA).init(PARAMS)


def learned(state):
    """What the state has learned, and must keep when a step is skipped."""
    return state.estimates, state.statistics


def unchanged(tree, other, what):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=what)


@EVERY
def test_a_bad_step_is_skipped_and_leaves_no_trace(name, tolerance):
    rtol, (update, state) = tolerance("identity"), program(name)
    _, good = update(state)
    bad = dict(BAD)
    if name == "empirical":
        bad |= AT_THE_LABELS
    for what, change in bad.items():
        direction, after = update(good, **change)
        assert not np.any(flat(direction)), what
        assert after.health.skipped, what
        assert after.health.skips == 1, what
        assert after.count == 2, what
        unchanged(learned(after), learned(good), what)
        for field, value in after.health._asdict().items():
            assert field == "damping" or np.isfinite(value), (what, field)
        recovered, last = update(after)
        assert np.all(np.isfinite(flat(recovered))), what
        assert np.any(flat(recovered)), what
        assert not last.health.skipped, what
        assert last.health.skips == 1, what
        if name != "sampled":  # where the key has moved on
            np.testing.assert_allclose(flat(recovered), flat(update(good)[0]), rtol)


@EVERY
def test_a_bad_first_step_is_skipped_too(name, tolerance):
    rtol, (update, state) = tolerance("identity"), program(name)
    for what in ("a gradient with a nan", "inputs with a nan", "negative damping"):
        direction, after = update(state, **BAD[what])
        assert not np.any(flat(direction)), what
        assert after.health.skipped, what
        recovered, _ = update(after)
        if name != "sampled":
            np.testing.assert_allclose(flat(recovered), flat(update(state)[0]), rtol)


def test_a_label_out_of_range_under_jit_makes_a_skipped_step():
    @jax.jit
    def step(state, y):
        loss, grads = jax.value_and_grad(MODEL.loss)(PARAMS, X, y)
        return loss, *TX.update(grads, state, PARAMS, inputs=X)

    loss, direction, state = step(TX.init(PARAMS), np.array([0, 1, CLASSES, 2]))
    assert np.isnan(loss)
    assert not np.any(flat(direction))
    assert state.health.skipped
    _, direction, state = step(state, Y)
    assert np.any(flat(direction))
    assert not state.health.skipped
    assert state.health.skips == 1


def test_a_schedule_that_turns_negative_skips_its_steps_and_no_others():
    tx = ng.scale_by_curvature(DENSE, damping=lambda count: 0.15 - 0.1 * count)
    state, skipped = tx.init(PARAMS), []
    update = jax.jit(lambda state: tx.update(GRADS, state, PARAMS, inputs=X))
    for _ in range(3):
        direction, state = update(state)
        skipped.append(bool(state.health.skipped))
        assert np.any(flat(direction)) != skipped[-1]
    assert skipped == [False, False, True]


def test_a_bad_observation_is_skipped_and_the_plain_update_too():
    observe = jax.jit(lambda state, x: ng.observe(DENSE, state, PARAMS, inputs=x))
    plain = jax.jit(lambda state: TX.update(GRADS, state, PARAMS))
    unseen = observe(TX.init(PARAMS), NAN_X)
    assert unseen.health.skipped
    assert unseen.estimates == 0
    direction, skipped = plain(unseen)  # there is nothing to solve with yet
    assert not np.any(flat(direction))
    assert skipped.health.skipped
    assert skipped.health.skips == 1
    eager, _ = TX.update(GRADS, unseen, PARAMS)
    assert not np.any(flat(eager))
    seen = observe(skipped, X)
    assert not seen.health.skipped
    expected = np.linalg.solve(
        np.asarray(dense_of(DENSE, PARAMS, X)) + LAMBDA * np.eye(9), flat(GRADS)
    )
    np.testing.assert_allclose(flat(plain(seen)[0]), expected)
    again = observe(seen, NAN_X)  # the last good observation stays
    np.testing.assert_allclose(flat(plain(again)[0]), expected)


@EVERY
def test_without_damping_a_singular_metric_gives_the_step_of_least_norm(
    name, tolerance
):
    update, state = program(name)
    curvature = ng.CURVATURES[name](MODEL)
    drawn = ng.tree.next_key(state.key)
    matrix = np.asarray(dense_of(curvature, PARAMS, X, Y, drawn))
    # Adding a constant to all logits changes nothing, so F is singular; the gradient
    # of a likelihood has no part along such a direction, it lies in the range of F.
    gradient = matrix @ flat(GRADS)
    _, unravel = jax.flatten_util.ravel_pytree(GRADS)
    direction, after = update(state, unravel(jnp.array(gradient)), damping=0.0)
    expected = np.linalg.pinv(matrix, rcond=1e-10) @ gradient
    rtol = tolerance("iterative")
    np.testing.assert_allclose(flat(direction), expected, rtol, rtol)
    assert not after.health.skipped
    assert after.health.residual < rtol
    singular = np.linalg.matrix_rank(matrix) < len(matrix)
    assert singular or name in ("diagonal", "layer_diagonal")
    assert after.health.fallback == (singular and name != "matrix_free")

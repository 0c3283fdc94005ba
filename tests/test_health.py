"""A run that does nothing says why: `health.reason` and `check_health`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_input import CLASSES, DENSE, GRADS, MODEL, PARAMS, TX, X, Y, flat, refuses

import natgrad as ng

NAN = jax.tree.map(lambda leaf: leaf + np.nan, GRADS)
SPOILT = np.where(np.arange(len(X))[:, None] == 2, np.nan, X)


@jax.jit
def stepped(state, grads, x, damping):
    tx = ng.scale_by_curvature(DENSE, damping=damping)
    return tx.update(grads, state, PARAMS, inputs=x)[1]


@pytest.mark.parametrize(
    ("change", "reason", "words"),
    [
        ({}, 0, None),
        ({"grads": NAN}, 1, "gradient or the loss was not finite"),
        ({"damping": -1.0}, 2, "damping was negative"),
        ({"x": SPOILT}, 3, "statistics of the curvature were not finite"),
    ],
)
def test_the_reason_of_a_skipped_step_is_told_and_forgotten(change, reason, words):
    good = {"grads": GRADS, "x": X, "damping": 0.5}
    state = stepped(TX.init(PARAMS), **good)
    after = stepped(state, **(good | change))
    assert after.health.reason == reason
    if words is None:
        ng.check_health(after)
    else:
        with refuses("last step was skipped, as were 1 in all", words):
            ng.check_health((after, {"of": "something else"}))
    again = stepped(after, **good)
    assert again.health.reason == 0
    ng.check_health(again)


def test_a_solution_that_is_not_finite_is_told():
    tx = ng.scale_by_curvature(ng.curvature.Gram(MODEL), damping=0.5)
    update = jax.jit(lambda state, x: tx.update(GRADS, state, PARAMS, inputs=x)[1])
    state = update(tx.init(PARAMS), SPOILT)
    with refuses("solution of (F + λI) d = g was not finite", "raise the damping"):
        ng.check_health(state)


def test_a_step_without_a_good_observation_is_told():
    observe = jax.jit(lambda state, x: ng.observe(DENSE, state, PARAMS, inputs=x))
    unseen = observe(TX.init(PARAMS), SPOILT)
    assert unseen.health.reason == 3
    with refuses("statistics", "none yet"):
        ng.check_health(jax.jit(TX.update)(GRADS, unseen, PARAMS)[1])


def test_an_impossible_label_is_told_after_a_compiled_step():
    tx = ng.natural_gradient(0.1, MODEL)

    @jax.jit
    def step(params, state, y):
        loss, grads = jax.value_and_grad(MODEL.loss)(params, X, y)
        return loss, *tx.update(grads, state, params, inputs=X)

    _, update, state = step(PARAMS, tx.init(PARAMS), np.full(len(X), CLASSES))
    assert not np.any(flat(update))
    with refuses("gradient", "model.loss(params, x, y)", "outside of jit", "labels"):
        ng.check_health(state)


@pytest.mark.parametrize(
    "make", [ng.natural_gradient, ng.kfac, ng.spring], ids=["exact", "kfac", "spring"]
)
def test_a_learning_rate_that_turns_nan_skips_its_step_and_says_so(make):
    tx = make(lambda count: jnp.where(count == 1, jnp.nan, 0.1), MODEL)
    update = jax.jit(lambda state: tx.update(GRADS, state, PARAMS, inputs=X))
    state, reasons = tx.init(PARAMS), []
    for _ in range(3):
        step, state = update(state)
        found = optax.tree.get(state, "health")
        reasons.append((int(found.reason), int(found.skips)))
        assert np.any(flat(step)) == (reasons[-1][0] == 0)
        assert np.all(np.isfinite(flat(step)))
    assert reasons == [(0, 0), (5, 1), (0, 1)]


def test_a_step_that_overflows_when_scaled_is_skipped():
    tx = ng.natural_gradient(1e30, MODEL, decay=0.0)
    params, grads = jax.tree.map(lambda a: a.astype(jnp.float32), (PARAMS, GRADS))
    grads = jax.tree.map(lambda g: 1e30 * g, grads)
    update = jax.jit(lambda s: tx.update(grads, s, params, inputs=X.astype("f")))
    step, state = update(tx.init(params))
    assert not np.any(flat(step))
    with refuses("after it was scaled", "learning rate"):
        ng.check_health(state)


def test_members_under_vmap_are_counted():
    state = jax.vmap(lambda damping: stepped(TX.init(PARAMS), GRADS, X, damping))(
        jnp.array([0.5, -1.0, 0.1])
    )
    with refuses("last step was skipped for 1 of 3 members", "damping"):
        ng.check_health(state)


def test_levenberg_marquardt_tells_why_its_steps_are_undone():
    inner = optax.chain(ng.scale_by_curvature(DENSE), optax.scale(-1.0))
    tx = ng.levenberg_marquardt(inner, MODEL)

    @jax.jit
    def step(state, y):
        loss, grads = jax.value_and_grad(MODEL.loss)(PARAMS, X, y)
        return tx.update(
            grads, state, PARAMS, inputs=X, targets=y, value=loss, value_fn=MODEL.loss
        )[1]

    state = step(tx.init(PARAMS), np.full(len(X), -1))
    state = step(state, np.full(len(X), -1))
    with refuses("were 2 in all", "loss was not finite", "impossible labels"):
        ng.check_health(state)
    ng.check_health(step(state, Y))


def test_a_state_without_health_and_a_traced_one_are_refused():
    with refuses("No part of this state has a health"):
        ng.check_health(optax.adam(0.1).init(PARAMS))
    with refuses("not known under jit", "compiled step returns"):
        jax.eval_shape(ng.check_health, TX.init(PARAMS))

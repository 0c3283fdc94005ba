"""Derivatives through steps of K-FAC and EKFAC, and batches of runs."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from kfac_steps import BATCHES, MODEL, NAMES, PARAMS, X, Y, transformation


def trained(name, hyper, steps=5, period=3):
    """The loss after a scan of steps, as a function of [damping, learning rate]."""
    tx = optax.chain(
        transformation(name, hyper[0], period=period),
        optax.scale_by_learning_rate(hyper[1]),
    )

    def step(carry, x):
        params, state = carry
        grads = jax.grad(MODEL.loss)(params, x, Y)
        updates, state = tx.update(grads, state, params, inputs=x)
        return (optax.apply_updates(params, updates), state), None

    start = (PARAMS, tx.init(PARAMS))
    (params, _), _ = jax.lax.scan(step, start, BATCHES[:steps])
    return MODEL.loss(params, X, Y)


@functools.cache
def eight_trained(name):
    """The losses for hyperparameters [8, 2]."""
    return jax.jit(jax.vmap(functools.partial(trained, name)))


@functools.cache
def with_derivatives(name):
    """One loss, its gradient, and its derivatives along both axes."""

    @jax.jit
    def program(at):
        value, push = jax.linearize(functools.partial(trained, name), at)
        (reverse,) = jax.linear_transpose(push, at)(jnp.ones_like(value))
        return value, reverse, jax.vmap(push)(jnp.eye(2))

    return program


@NAMES
def test_hypergradients_through_five_steps_equal_central_differences(name):
    at, h = jnp.array([0.2, 0.3]), 1e-4
    _, reverse, forward = with_derivatives(name)(at)
    shifts = h * np.kron(np.array([[1], [-1], [2], [-2]]), np.eye(2))
    values = eight_trained(name)(at[None] + shifts).reshape(4, 2)
    near = (values[0] - values[1]) / (2 * h)
    far = (values[2] - values[3]) / (4 * h)
    expected = (4 * near - far) / 3
    assert np.all(np.abs(expected) > 1e-4)
    np.testing.assert_allclose(reverse, expected, rtol=1e-6)
    np.testing.assert_allclose(forward, expected, rtol=1e-6)


@NAMES
def test_vmap_over_eight_hyperparameters_equals_a_loop(name):
    hyper = jnp.stack([jnp.linspace(0.1, 0.8, 8), jnp.linspace(0.05, 0.4, 8)], axis=1)
    given = eight_trained(name)(hyper)
    one = [with_derivatives(name)(h)[0] for h in hyper]
    np.testing.assert_allclose(given, one, rtol=1e-8)
    assert np.ptp(given) > 1e-3


@NAMES
def test_a_refresh_stays_conditional_under_vmap(name):
    """Factorisations are inside conditionals of the program, none outside.

    A loop of at most one turn is a conditional: see `natgrad.control_flow`.
    """
    tx = transformation(name)
    state = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(3))
    update = lambda g, s, p: tx.update(g, s, p, inputs=X)
    batched = jax.vmap(update, in_axes=(None, 0, None))
    jaxpr = jax.make_jaxpr(batched)(PARAMS, state, PARAMS)
    kernel = "cholesky" if name == "tikhonov" else "eigh"
    assert _count(jaxpr.jaxpr, kernel, inside=False) == 0
    assert _count(jaxpr.jaxpr, kernel, inside=True) > 0


def _count(jaxpr, primitive, inside):
    """Equations of a primitive inside (or outside) of conditionals."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == primitive and not inside:
            total += 1
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if not hasattr(inner, "eqns"):
                continue
            if name not in {"cond", "while"}:
                total += _count(inner, primitive, inside)
            elif inside:
                total += _count(inner, primitive, False)
                total += _count(inner, primitive, True)
    return total

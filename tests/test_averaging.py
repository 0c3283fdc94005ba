"""The default average of F: over as many batches as determine it, and no more."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    CLASSES,
    LAMBDA,
    MODEL,
    RATE,
    damped_solve,
    draw,
    find,
    flat,
    gradient_of,
    oracle,
    start,
)
from sklearn.datasets import load_breast_cancer

import natgrad as ng
from natgrad.curvature import Dense, Diagonal, Gram

SIZE = flat(start()).size


def by_default(**more):
    return ng.natural_gradient(RATE, MODEL, trust_region=None, damping=LAMBDA, **more)


def beta_after(count, tx, state=None):
    """β in the state after an update on so many examples."""
    (x, y), params = draw(0, count), start()
    state = tx.init(params) if state is None else state
    _, state = tx.update(gradient_of(params, x, y), state, params, inputs=x)
    return float(find(state).decay)


def test_steps_average_until_five_columns_a_parameter_are_in():
    """(Σ_j β^{k−j} F_j / Σ_j β^{k−j} + λI)⁻¹ g with β = 1 − N K / (5 P)."""
    params, tx, count = start(), by_default(), 5
    state, average, weight = tx.init(params), 0.0, 0.0
    beta = 1 - count * CLASSES / (5 * SIZE)
    assert 0 < beta < 0.95
    for k in range(4):
        x, y = draw(k, count)
        known = oracle(params, x, y)
        average, weight = beta * average + known.fisher, beta * weight + 1
        step, state = tx.update(gradient_of(params, x, y), state, params, inputs=x)
        expected = -RATE * damped_solve(average / weight, known.gradient)
        np.testing.assert_allclose(flat(step), expected, rtol=1e-9, atol=1e-12)
        params = optax.apply_updates(params, step)


def test_beta_is_by_the_columns_of_the_batch():
    enough = 5 * SIZE // CLASSES
    assert beta_after(enough, by_default()) == 0
    assert beta_after(enough - 1, by_default()) == pytest.approx(CLASSES / (5 * SIZE))
    assert beta_after(1, by_default(decay=0.25)) == 0.25
    assert beta_after(1, by_default(decay=0, curvature=Dense)) == 0
    for keeps_no_matrix_of_f in (Gram, Diagonal):
        assert beta_after(1, by_default(curvature=keeps_no_matrix_of_f)) == 0


def test_no_average_is_longer_than_twenty_batches():
    model = ng.Model(lambda w, x: x @ w, ng.families.Bernoulli())
    tx, w, x = ng.natural_gradient(model=model), jnp.zeros(40), jnp.ones((3, 40))
    _, state = tx.update(jnp.ones(40), tx.init(w), w, inputs=x)
    assert float(find(state).decay) == 0.95


def test_a_batch_of_which_twenty_do_not_determine_f_leaves_beta():
    model = ng.Model(lambda w, x: x @ w, ng.families.Bernoulli())
    tx, w = ng.natural_gradient(model=model), jnp.zeros(40)
    state = tx.init(w)
    for count, beta in ((1, 0), (2, 0.95), (1, 0.95), (50, 0.75), (1, 0.75)):
        x = jnp.ones((count, 40))
        _, state = tx.update(jnp.ones(40), state, w, inputs=x)
        assert float(find(state).decay) == pytest.approx(beta)


def test_without_a_batch_beta_stays():
    tx, params = by_default(), start()
    x, y = draw(0, 4)
    _, _, statistics = Dense(MODEL).value_and_grad(params, x, y)
    gradient, state = gradient_of(params, x, y), tx.init(params)
    for given in ({"statistics": statistics}, {}):
        _, state = tx.update(gradient, state, params, **given)
        assert find(state).decay == 0
    _, state = tx.update(gradient, state, params, inputs=x)
    before = find(state).decay
    _, state = tx.update(gradient, state, params, statistics=statistics)
    assert find(state).decay == before > 0


@pytest.mark.parametrize("alias", ["natural_gradient", "spring"])
def test_large_inputs_in_small_batches_do_not_diverge(alias):
    """A logistic regression on inputs × 100, from 0.69 nats.

    With F of each batch alone it ends at 0.87 nats, and spring at 1.4.
    """
    x, y = map(np.asarray, load_breast_cancer(return_X_y=True))
    x = jnp.asarray(100 * (x - x.mean(0)) / x.std(0), jnp.float32)
    y = jnp.asarray(y)
    model = ng.Model(
        lambda w, x: x @ w["w"] + w["b"], ng.families.Bernoulli(), example_inputs=x[:1]
    )
    tx = getattr(ng, alias)(model=model)
    params = {"w": jnp.zeros(30, jnp.float32), "b": jnp.zeros((), jnp.float32)}

    def step(carry, pick):
        params, state = carry
        gradient = jax.grad(model.loss)(params, x[pick], y[pick])
        step, state = tx.update(gradient, state, params, inputs=x[pick])
        return (optax.apply_updates(params, step), state), None

    picks = np.random.default_rng(4).integers(0, len(x), (100, 32))
    train = jax.jit(lambda c: jax.lax.scan(step, c, picks)[0])
    params, _ = train((params, tx.init(params)))
    assert model.loss(params, x, y) < 0.35


@pytest.mark.parametrize("alias", ["natural_gradient", "spring"])
@pytest.mark.parametrize("count", [1, 2])
def test_batches_of_one_and_two_examples_train(alias, count):
    """A network of 98 parameters, from 0.98 nats, as it comes.

    With averages of such batches and a radius that changes by 5 % at most in a step
    it does not train: of one example each, and with spring of two.
    """
    draws = np.random.default_rng(0)
    x = draws.normal(size=(256, 5)).astype(np.float32)
    y = (x @ draws.normal(size=5) > 0).astype(int)
    params = {
        "w": draws.normal(size=(5, 12)) / 5**0.5,
        "b": np.zeros(12),
        "v": draws.normal(size=(12, 2)) / 12**0.5,
        "c": np.zeros(2),
    }
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    hidden = lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None])
    model = ng.Model(
        lambda p, x: hidden(p, x) @ p["v"] + p["c"][None], ng.families.Categorical()
    )
    tx = getattr(ng, alias)(model=model)

    def step(carry, pick):
        params, state = carry
        gradient = jax.grad(model.loss)(params, x[pick], y[pick])
        step, state = tx.update(gradient, state, params, inputs=x[pick])
        return (optax.apply_updates(params, step), state), None

    x, y = jnp.asarray(x), jnp.asarray(y)
    picks = draws.integers(0, len(x), (150, count))
    train = jax.jit(lambda c: jax.lax.scan(step, c, picks)[0])
    params, _ = train((params, tx.init(params)))
    assert model.loss(params, x, y) < 0.3

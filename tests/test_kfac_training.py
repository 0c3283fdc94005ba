"""What K-FAC earns: training against Adam, and on the models of the zoo."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from sklearn.datasets import load_digits

import natgrad as ng


@functools.cache
def digits():
    return jnp.asarray(load_digits().data[:256] / 16.0, jnp.float32)


def autoencoder(sizes=(64, 30, 8, 30, 64)):
    """(model, params, x): tanh layers with a linear code, Bernoulli pixels."""
    keys = jax.random.split(jax.random.PRNGKey(0), len(sizes))
    params = [
        {
            "w": jax.random.normal(key, (n, o), jnp.float32) / np.sqrt(n),
            "b": jnp.zeros(o, jnp.float32),
        }
        for key, n, o in zip(keys, sizes, sizes[1:], strict=False)
    ]

    def apply(params, x):
        for i, p in enumerate(params):
            x = x @ p["w"] + p["b"][None]
            if i not in (len(params) // 2 - 1, len(params) - 1):
                x = jnp.tanh(x)
        return x

    x = digits()
    return ng.Model(apply, SoftBernoulli(), example_inputs=x[:1]), params, x


class SoftBernoulli(ng.families.Bernoulli):
    """Bernoulli whose labels may be grey values in [0, 1]."""

    def in_support(self, z, y):
        return jnp.ones(z.shape, bool)

    def log_prob(self, z, y):
        return y * z - jax.nn.softplus(z)


STEPS = 30


def path(tx, model, params, x):
    """The losses [STEPS] of a run."""

    def step(carry, _):
        params, state = carry
        grads = jax.grad(model.loss)(params, x, x)
        updates, state = tx.update(grads, state, params, inputs=x)
        params = optax.apply_updates(params, updates)
        return (params, state), model.loss(params, x, x)

    return jax.lax.scan(step, (params, tx.init(params)), None, length=STEPS)[1]


@functools.cache
def adam():
    """The least last loss over three rates, in one program."""
    model, params, x = autoencoder()
    make = lambda rate: optax.with_extra_args_support(optax.adam(rate))
    last = lambda rate: path(make(rate), model, params, x)[-1]
    rates = jnp.array([1e-3, 3e-3, 1e-2], jnp.float32)
    return jax.jit(lambda rates: jax.lax.map(last, rates))(rates).min()


@pytest.mark.slow
@pytest.mark.parametrize("alias", [ng.kfac, ng.ekfac])
def test_an_autoencoder_trains_faster_than_with_adam(alias):
    model, params, x = autoencoder()
    start = float(model.loss(params, x, x))
    tx = alias(0.5, model, damping=1e-2)
    run = lambda params: path(tx, model, params, x)
    losses = np.asarray(jax.jit(run)(params))
    assert np.isfinite(losses).all()
    # 0.72 of it, and 1.01 where the factors are 0.
    assert losses[-1] < 0.85 * adam()
    assert adam() < start


# One of each kind of block: `test_layers_zoo` has the statistics of all.
TRAINED = ("linen cnn", "norms", "tied embedding", "attention", "lstm", "low rank")


@pytest.mark.parametrize("name", TRAINED)
def test_ten_steps_lower_the_loss_of_zoo_models(name):
    apply, params, inputs, in_axes = zoo.ZOO[name]()
    flat = lambda p, x: (lambda z: z.reshape(z.shape[0], -1))(apply(p, x))
    model = ng.Model(
        flat, ng.families.NormalMean(), example_inputs=inputs, in_axes=in_axes
    )
    shape = jax.eval_shape(flat, params, inputs).shape
    y = jax.random.normal(jax.random.PRNGKey(1), shape)
    tx = ng.kfac(0.3, model, damping=1e-1)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(model.loss)(params, inputs, y)
        updates, state = tx.update(grads, state, params, inputs=inputs)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(11):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 1e-3
    assert not state[0].health.skipped

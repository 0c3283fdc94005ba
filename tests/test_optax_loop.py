"""The loop of a user trains: plain trees, flax, nnx and equinox."""

from __future__ import annotations

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from contract import (
    ALIASES,
    CLASSES,
    EVERY_ALIAS,
    FEATURES,
    LAMBDA,
    RATE,
    TARGETS_TOO,
    X,
    Y,
    describe,
    equal,
)
from flax import linen, nnx
from flax.training.train_state import TrainState

import natgrad as ng


class Net(linen.Module):
    """A network with a hidden layer, in float32 as flax's default."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES)(jnp.tanh(linen.Dense(4)(x)))


x32 = jnp.asarray(X, jnp.float32)


@EVERY_ALIAS
def test_the_loop_of_the_readme_trains(alias):
    net, x, y = Net(), x32, jnp.asarray(Y)
    params = jax.jit(net.init)(jax.random.key(0), x)
    more = {"targets": y} if alias in TARGETS_TOO else {}
    chex.clear_trace_counter()

    model = ng.Model(net.apply, ng.families.Categorical(), example_inputs=x[:1])
    tx = ALIASES[alias](0.1, model, damping=1e-1)
    state = tx.init(params)
    before = describe((params, state))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x, **more)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(5):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
        assert describe((params, state)) == before
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-2


AS_IT_COMES = ng.damping.AdaptiveRadius()


def trained_plainly(model, params, steps=3, trust_region=AS_IT_COMES):
    """The reference: the documented loop on a tree of arrays."""
    tx = ng.natural_gradient(RATE, model, damping=LAMBDA, trust_region=trust_region)
    state = tx.init(params)

    @jax.jit
    def step(params, state):
        grads = jax.grad(model.loss)(params, x32, Y)
        updates, state = tx.update(grads, state, params, inputs=x32)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_a_flax_train_state_trains_through_observe(tolerance):
    """Without the trust region, which would measure its divergence on a batch."""
    net = Net()
    params = net.init(jax.random.key(0), x32)
    model = ng.Model(net.apply, ng.families.Categorical())
    train = TrainState.create(
        apply_fn=net.apply,
        params=params,
        tx=ng.natural_gradient(RATE, model, damping=LAMBDA, trust_region=None),
    )

    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(train, x, y):
        grads = jax.grad(model.loss)(train.params, x, y)
        seen = ng.observe(train.tx, train.opt_state, train.params, inputs=x)
        return train.replace(opt_state=seen).apply_gradients(grads=grads)

    for _ in range(3):
        train = step(train, x32, Y)
    assert train.step == 3
    plainly = trained_plainly(model, params, trust_region=None)
    equal(train.params, plainly, tolerance("identity", "float32"))


def test_an_nnx_optimizer_trains(tolerance):
    class NNXNet(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(FEATURES, 4, rngs=rngs)
            self.out = nnx.Linear(4, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.hidden(x)))

    net = NNXNet(nnx.Rngs(0))
    graph, params = nnx.split(net, nnx.Param)
    params = jax.tree.map(jnp.copy, params)
    model = ng.Model(
        lambda params, x: nnx.merge(graph, params)(x), ng.families.Categorical()
    )
    tx = ng.natural_gradient(RATE, model, damping=LAMBDA)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    traces = 0

    @nnx.jit
    def step(net, optimizer, x, y):
        nonlocal traces
        traces += 1
        loss = lambda net: model.loss(nnx.state(net, nnx.Param), x, y)
        optimizer.update(net, nnx.grad(loss)(net), inputs=x)

    for _ in range(3):
        step(net, optimizer, x32, Y)
    assert traces == 1
    assert optimizer.step[...] == 3
    trained, expected = nnx.state(net, nnx.Param), trained_plainly(model, params)
    equal(
        nnx.to_pure_dict(trained),
        nnx.to_pure_dict(expected),
        tolerance("identity", "float32"),
    )


def test_an_equinox_module_trains(tolerance):
    net = eqx.nn.MLP(
        FEATURES, CLASSES, 4, 1, activation=jnp.tanh, key=jax.random.key(0)
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    model = ng.Model(apply, ng.families.Categorical())
    trained = trained_plainly(model, params)
    arrays = lambda params: [
        {"w": layer.weight, "b": layer.bias} for layer in params.layers
    ]
    by_hand = lambda layers, x: (
        jnp.tanh(x @ layers[0]["w"].T + layers[0]["b"][None]) @ layers[1]["w"].T
        + layers[1]["b"][None]
    )
    expected = trained_plainly(
        ng.Model(by_hand, ng.families.Categorical()), arrays(params)
    )
    assert isinstance(trained, eqx.nn.MLP)
    # Parameters of size 1, one of them near 0.
    equal(arrays(trained), expected, tolerance("identity", "float32"), atol=1e-7)

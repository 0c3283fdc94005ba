"""One network written three times: flax.linen, flax.nnx and equinox.

natgrad needs a function (params, inputs) -> z, nothing else: no base class, no layer
registered. From the same weights the three take the same natural-gradient steps; what
differs is how each library separates parameters from the rest. (In float32 the steps
agree to rounding, not to the bit: the parameters lie in another order in F.)

    python examples/03_flax_and_equinox.py

flax.linen  losses 2.4154 1.7644 0.9178 0.5443 0.3394
flax.nnx    losses 2.4154 1.7644 0.9178 0.5443 0.3394
equinox     losses 2.4154 1.7644 0.9178 0.5443 0.3394
largest difference of the logits afterwards 2e-05
"""

import itertools

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import natgrad as ng

SIZES = (64, 6, 10)
STEPS = 5


def optimizer(model):
    # Five whole steps; as it comes a trust region would shorten the first of them.
    return ng.natural_gradient(0.5, model, damping=1e-2, trust_region=None)


def with_linen(weights, x, y):
    """flax.linen: apply(variables, inputs) is what Model takes."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            hidden = jnp.tanh(nn.Dense(SIZES[1])(x))
            return nn.Dense(SIZES[2])(hidden)

    net = Network()
    (w1, b1), (w2, b2) = weights
    params = {
        "params": {
            "Dense_0": {"kernel": w1, "bias": b1},
            "Dense_1": {"kernel": w2, "bias": b2},
        }
    }
    return train(ng.Model(net.apply, ng.families.Categorical()), params, x, y)


def with_equinox(weights, x, y):
    """equinox: partition the module into arrays and the rest, and combine in apply."""
    net = eqx.nn.MLP(*SIZES[::2], SIZES[1], 1, jnp.tanh, key=jax.random.key(0))
    arrays = [array.T for layer in weights for array in layer]  # [outputs, inputs]
    layers = lambda net: [
        array for layer in net.layers for array in (layer.weight, layer.bias)
    ]
    net = eqx.tree_at(layers, net, arrays)
    params, static = eqx.partition(net, eqx.is_inexact_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    return train(ng.Model(apply, ng.families.Categorical()), params, x, y)


def with_nnx(weights, x, y):
    """flax.nnx: merge the graph in apply; nnx.Optimizer hands inputs= on."""

    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(*SIZES[:2], rngs=rngs)
            self.second = nnx.Linear(*SIZES[1:], rngs=rngs)

        def __call__(self, x):
            return self.second(jnp.tanh(self.first(x)))

    net = Network(nnx.Rngs(0))
    for layer, (w, b) in zip((net.first, net.second), weights, strict=True):
        layer.kernel[...], layer.bias[...] = w, b
    graph = nnx.graphdef(net)
    model = ng.Model(
        lambda params, x: nnx.merge(graph, params)(x), ng.families.Categorical()
    )
    state = nnx.Optimizer(net, optimizer(model), wrt=nnx.Param)

    @nnx.jit
    def step(net, state, x, y):
        loss, grads = nnx.value_and_grad(
            lambda net: model.loss(nnx.state(net, nnx.Param), x, y)
        )(net)
        state.update(net, grads, inputs=x)
        return loss

    losses = [float(step(net, state, x, y)) for _ in range(STEPS)]
    return losses, np.asarray(net(x))


def train(model, params, x, y):
    """The losses of a few steps, and the logits after them."""
    tx = optimizer(model)
    state = tx.init(params)

    @jax.jit
    def step(params, state, x, y):
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(STEPS):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
    return losses, np.asarray(model.outputs(params, x))


def main():
    x, y = load_digits(return_X_y=True)
    x, y = np.float32(x[:200] / 16), np.int32(y[:200])
    rng = np.random.default_rng(0)
    weights = [
        (
            np.float32(rng.normal(size=(inputs, outputs)) / np.sqrt(inputs)),
            np.zeros(outputs, np.float32),
        )
        for inputs, outputs in itertools.pairwise(SIZES)
    ]
    weights = jax.tree.map(jnp.asarray, weights)
    losses, logits = {}, {}
    for name, run in (
        ("flax.linen", with_linen),
        ("flax.nnx", with_nnx),
        ("equinox", with_equinox),
    ):
        losses[name], logits[name] = run(weights, x, y)
        print(f"{name:10}  losses", *(f"{loss:.4f}" for loss in losses[name]))
    first, *others = logits.values()
    difference = max(float(np.max(np.abs(other - first))) for other in others)
    print(f"largest difference of the logits afterwards {difference:.0e}")
    return {"losses": losses, "difference": difference}


if __name__ == "__main__":
    main()

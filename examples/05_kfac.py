"""K-FAC on a Flax CNN, on an Equinox transformer, and on layers in a scan.

Nothing is registered and no layer is replaced: the parameters' uses are read off the
traced function, and the report says what was found.

    python examples/05_kfac.py
"""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits

import natgrad as ng

STEPS = 40


class Convolutions(nn.Module):
    """Flax: two convolutions and a dense layer."""

    @nn.compact
    def __call__(self, x):
        """Logits [N, 10] of images [N, 64]."""
        x = x.reshape(x.shape[0], 8, 8, 1)
        x = jnp.tanh(nn.Conv(8, (3, 3), strides=2)(x))
        x = jnp.tanh(nn.Conv(16, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


class Transformer(eqx.Module):
    """Equinox: the 8 rows of an image as tokens."""

    embed: eqx.nn.Linear
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.embed = eqx.nn.Linear(8, 16, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 16, key=keys[1])
        self.norm = eqx.nn.LayerNorm(16)
        self.head = eqx.nn.Linear(16, 10, key=keys[2])

    def __call__(self, image):
        """Logits [10] of one image [64]."""
        tokens = jax.vmap(self.embed)(image.reshape(8, 8))
        tokens = jax.vmap(self.norm)(tokens + self.attention(tokens, tokens, tokens))
        return self.head(jnp.mean(jnp.tanh(tokens), axis=0))


def flax_cnn(x):
    net = Convolutions()
    return net.apply, net.init(jax.random.key(0), x[:1])


def equinox_transformer(x):
    del x
    arrays, static = eqx.partition(Transformer(jax.random.key(0)), eqx.is_array)
    return lambda arrays, x: jax.vmap(eqx.combine(arrays, static))(x), arrays


def scanned_layers(x):
    """Four layers stacked in one array each: their factors are stacked too."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "in": 0.3 * jax.random.normal(keys[0], (x.shape[1], 16)),
        "layers": {
            "w": 0.3 * jax.random.normal(keys[1], (4, 16, 16)),
            "b": jnp.zeros((4, 16)),
        },
        "out": 0.3 * jax.random.normal(keys[2], (16, 10)),
    }

    def layer(h, p):
        return h + jnp.tanh(h @ p["w"] + p["b"]), None

    def apply(params, x):
        h, _ = jax.lax.scan(layer, x @ params["in"], params["layers"])
        return h @ params["out"]

    return apply, params


def train(apply, params, x, y):
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=x[:1])
    tx = ng.kfac(0.3, model, damping=1e-2)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(STEPS):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    print(ng.layers.report(model, params))
    return losses


def main():
    """name -> the losses."""
    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images[:256] / 16, jnp.float32), jnp.asarray(labels[:256])
    found = {}
    for make in (flax_cnn, equinox_transformer, scanned_layers):
        found[make.__name__] = losses = train(*make(x), x, y)
        print(f"{make.__name__}: loss {losses[0]:.3f} -> {losses[-1]:.3f}\n")
    return found


if __name__ == "__main__":
    main()

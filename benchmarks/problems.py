"""Models to measure on: functions that give (model, params, x, y)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng


def dense_layers(sizes, seed=0):
    keys = jax.random.split(jax.random.PRNGKey(seed), len(sizes))
    return [
        {"w": jax.random.normal(k, (n, o)) / np.sqrt(n), "b": jnp.zeros(o)}
        for k, n, o in zip(keys, sizes, sizes[1:], strict=False)
    ]


def dense_apply(params, x):
    for i, p in enumerate(params):
        x = x @ p["w"] + p["b"]
        x = jnp.tanh(x) if i < len(params) - 1 else x
    return x


def autoencoder(batch):
    """784-1000-500-250-30 and back, Bernoulli pixels."""
    half = [784, 1000, 500, 250, 30]
    x = jax.random.bernoulli(jax.random.PRNGKey(1), 0.3, (batch, 784))
    y, x = x.astype(jnp.int32), x.astype(jnp.float32)
    model = ng.Model(dense_apply, ng.families.Bernoulli(), example_inputs=x[:1])
    return model, dense_layers(half + half[-2::-1]), x, y


def classified(apply, params, x):
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=x[:1])
    return model, params, x, jnp.arange(x.shape[0]) % 10


def classifier(batch=256):
    """784-512-512-10."""
    x = jax.random.normal(jax.random.PRNGKey(1), (batch, 784))
    return classified(dense_apply, dense_layers([784, 512, 512, 10]), x)


def cnn(batch=64):
    """Two strided 3×3 convolutions of a 28×28 image, then a dense layer."""
    keys = jax.random.split(jax.random.PRNGKey(0), 2)
    params = {
        "conv": [
            0.3 * jax.random.normal(keys[0], (3, 3, 1, 16)),
            0.1 * jax.random.normal(keys[1], (3, 3, 16, 32)),
        ],
        "dense": dense_layers([7 * 7 * 32, 10]),
    }

    def apply(params, x):
        for w in params["conv"]:
            names = ("NHWC", "HWIO", "NHWC")
            x = jnp.tanh(
                jax.lax.conv_general_dilated(
                    x, w, (2, 2), "SAME", dimension_numbers=names
                )
            )
        return dense_apply(params["dense"], x.reshape(x.shape[0], -1))

    x = jax.random.normal(jax.random.PRNGKey(1), (batch, 28, 28, 1))
    return classified(apply, params, x)


def transformer(batch=32, length=32, width=64, depth=2):
    """Two layers of one-headed attention and an MLP, pooled."""

    def layer(seed):
        sizes = {"qkv": [width, 3 * width], "out": [width, width]}
        mlp = {"up": [width, 4 * width], "down": [4 * width, width]}
        return {
            name: dense_layers(pair, seed)[0] for name, pair in (sizes | mlp).items()
        }

    params = {
        "layers": [layer(i) for i in range(depth)],
        "head": dense_layers([width, 10]),
    }
    affine = lambda p, x: x @ p["w"] + p["b"]

    def apply(params, x):
        for p in params["layers"]:
            q, k, v = jnp.split(affine(p["qkv"], jax.nn.standardize(x)), 3, axis=-1)
            weights = jax.nn.softmax(q @ k.mT / np.sqrt(width))
            x = x + affine(p["out"], weights @ v)
            hidden = jax.nn.gelu(affine(p["up"], jax.nn.standardize(x)))
            x = x + affine(p["down"], hidden)
        return dense_apply(params["head"], jnp.mean(x, axis=1))

    x = jax.random.normal(jax.random.PRNGKey(1), (batch, length, width))
    return classified(apply, params, x)


MODELS = {
    "autoencoder 256": lambda: autoencoder(256),
    "autoencoder 1000": lambda: autoencoder(1000),
    "classifier": classifier,
    "cnn": cnn,
    "transformer": transformer,
}

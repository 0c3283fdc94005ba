"""Networks of the report card, in plain JAX: parameters from a seed, and apply."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.problems import dense_apply, dense_layers

NAMES = ("NHWC", "HWIO", "NHWC")


def affine(p, x):
    return x @ p["w"] + p["b"]


def kernel(seed, size, inputs, outputs):
    """A size×size convolution with a bias."""
    shape = (size, size, inputs, outputs)
    draw = np.random.default_rng(seed).normal(size=shape) / np.sqrt(size**2 * inputs)
    return {"w": jnp.asarray(draw, jnp.float32), "b": jnp.zeros(outputs)}


def convolve(p, x, stride=1):
    strides = (stride, stride)
    window = jax.lax.conv_general_dilated(
        x, p["w"], strides, "SAME", dimension_numbers=NAMES
    )
    return window + p["b"]


# An MLP that standardises nothing -------------------------------------------------


def relu_apply(params, x):
    for p in params[:-1]:
        x = jax.nn.relu(affine(p, x))
    return affine(params[-1], x)


# A convolutional classifier: 8 channels, then 16 at half the size ------------------


def cnn_params(seed):
    return {
        "conv": [kernel(seed, 3, 1, 8), kernel(seed + 100, 3, 8, 16)],
        "dense": dense_layers([4 * 4 * 16, 10], seed),
    }


def cnn(params, x):
    x = jax.nn.relu(convolve(params["conv"][0], x))
    x = jax.nn.relu(convolve(params["conv"][1], x, stride=2))
    return dense_apply(params["dense"], x.reshape(x.shape[0], -1))


# A gated recurrent unit over the rows of an image ----------------------------------

HIDDEN = 32


def gru_params(seed):
    return {
        "inputs": dense_layers([8, 3 * HIDDEN], seed)[0],
        "hidden": dense_layers([HIDDEN, 3 * HIDDEN], seed + 100)[0],
        "head": dense_layers([HIDDEN, 10], seed + 200)[0],
    }


def gru(params, x):
    """Logits [N, 10] after the rows x [N, 8, 8] in turn; Cho et al. (2014)."""

    def step(hidden, row):
        reset, update, new = jnp.split(affine(params["inputs"], row), 3, axis=-1)
        r, u, n = jnp.split(affine(params["hidden"], hidden), 3, axis=-1)
        keep = jax.nn.sigmoid(update + u)
        proposal = jnp.tanh(new + jax.nn.sigmoid(reset + r) * n)
        return keep * hidden + (1 - keep) * proposal, None

    start = jnp.zeros((x.shape[0], HIDDEN), x.dtype)
    hidden, _ = jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))
    return affine(params["head"], hidden)


# A residual MLP of ten blocks ------------------------------------------------------

BLOCKS, RESIDUAL_WIDTH = 10, 32


def residual_params(seed):
    width = RESIDUAL_WIDTH
    return {
        "first": dense_layers([64, width], seed)[0],
        "blocks": [
            dense_layers([width, width], 100 * (seed + 1) + i)[0] for i in range(BLOCKS)
        ],
        "last": dense_layers([width, 10], seed + 50)[0],
    }


def residual(params, x):
    x = affine(params["first"], x)
    for p in params["blocks"]:
        x = x + jax.nn.relu(affine(p, jax.nn.standardize(x)))
    return affine(params["last"], jax.nn.standardize(x))


# A small U-Net with group norm: down once, up once ---------------------------------

GROUPS = 4


def group_norm(p, x):
    grouped = x.reshape(*x.shape[:3], GROUPS, -1)
    normal = jax.nn.standardize(grouped, axis=(1, 2, 4)).reshape(x.shape)
    return normal * p["scale"] + p["shift"]


def norm_params(channels):
    return {"scale": jnp.ones(channels), "shift": jnp.zeros(channels)}


def unet_params(seed):
    sizes = {"down": (1, 8), "deep": (8, 16), "deeper": (16, 16), "up": (24, 8)}
    blocks = {
        name: kernel(10 * seed + i, 3, *size) | norm_params(size[1])
        for i, (name, size) in enumerate(sizes.items())
    }
    return blocks | {"head": kernel(10 * seed + 9, 1, 8, 1)}


def unet(params, x):
    """Logits [N, 8, 8] of the pixels of images x [N, 8, 8, 1]."""

    def block(name, x, stride=1):
        p = params[name]
        return jax.nn.relu(group_norm(p, convolve(p, x, stride)))

    down = block("down", x)
    deep = block("deeper", block("deep", down, stride=2))
    large = jnp.repeat(jnp.repeat(deep, 2, axis=1), 2, axis=2)
    up = block("up", jnp.concatenate([down, large], axis=-1))
    return convolve(params["head"], up)[..., 0]


# A vision transformer: 16 patches of 2×2, width 16, two heads ----------------------

VIT_WIDTH, HEADS, PATCHES = 16, 2, 16


def vit_params(seed):
    width = VIT_WIDTH
    sizes = {
        "qkv": [width, 3 * width],
        "out": [width, width],
        "up": [width, 2 * width],
        "down": [2 * width, width],
    }

    def block(start):
        return {
            name: dense_layers(size, start + i)[0]
            for i, (name, size) in enumerate(sizes.items())
        }

    places = np.random.default_rng(seed).normal(size=(PATCHES, width))
    return {
        "patches": dense_layers([4, width], seed)[0],
        "places": jnp.asarray(0.1 * places, jnp.float32),
        "blocks": [block(100 * (seed + 1)), block(100 * (seed + 1) + 10)],
        "head": dense_layers([width, 10], seed + 50)[0],
    }


def attention(p, x):
    """Mixes the patches of x [N, T, D]."""
    split = lambda t: t.reshape(*t.shape[:2], HEADS, -1).swapaxes(1, 2)
    q, k, v = (split(t) for t in jnp.split(affine(p["qkv"], x), 3, axis=-1))
    scores = q @ k.mT / np.sqrt(q.shape[-1]).astype(np.float32)
    mixed = (jax.nn.softmax(scores) @ v).swapaxes(1, 2).reshape(x.shape)
    return affine(p["out"], mixed)


def vit(params, patches):
    """Logits [N, 10] of patches [N, 16, 4]."""
    x = affine(params["patches"], patches) + params["places"]
    for p in params["blocks"]:
        x = x + attention(p, jax.nn.standardize(x))
        hidden = jax.nn.gelu(affine(p["up"], jax.nn.standardize(x)))
        x = x + affine(p["down"], hidden)
    return affine(params["head"], jax.nn.standardize(jnp.mean(x, axis=1)))

"""Models of flax, equinox and haiku for the zoo, and what makes a Case of each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from flax import nnx

N = 4


class Case(NamedTuple):
    """apply(params, inputs) -> z [N, ...], and arguments for it."""

    apply: Callable
    params: Any
    inputs: Any
    in_axes: Any = 0


def normal(seed, *shape, scale=0.5):
    return scale * jax.random.normal(jax.random.key(seed), shape)


def widened(tree):
    """float64 copies, so that comparisons are to rounding."""
    wide = lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a
    return jax.tree.map(wide, tree)


def of_linen(module, inputs):
    params = widened(jax.jit(module.init)(jax.random.key(0), inputs))
    return Case(module.apply, params, inputs)


def of_equinox(make, inputs):
    params, static = eqx.partition(eqx.filter_jit(make)(), eqx.is_inexact_array)
    apply = lambda p, x: jax.vmap(eqx.combine(p, static))(x)
    return Case(apply, widened(params), inputs)


def of_nnx(module, inputs):
    graph, params, rest = nnx.split(module, nnx.Param, ...)
    apply = lambda p, x: nnx.merge(graph, p, rest)(x)
    return Case(apply, widened(params), inputs)


def of_haiku(function, inputs):
    transformed = hk.without_apply_rng(hk.transform(function))
    params = widened(jax.jit(transformed.init)(jax.random.key(0), inputs))
    return Case(transformed.apply, params, inputs)


class LinenMLP(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(5)(x))
        return nn.Dense(2)(x)


class NnxMLP(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.one = nnx.Linear(3, 5, rngs=rngs)
        self.two = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.two(jnp.tanh(self.one(x)))


class LinenCNN(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(4, (3, 3), strides=2)(x))
        x = nn.tanh(nn.Conv(4, (2, 2), feature_group_count=2, padding="VALID")(x))
        x = nn.tanh(nn.Conv(4, (2, 2), feature_group_count=4, use_bias=False)(x))
        x = nn.tanh(nn.ConvTranspose(2, (2, 2), strides=(2, 2))(x))
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class LinenConvs(nn.Module):
    rank: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Conv(3, (2,) * self.rank, kernel_dilation=2)(x))
        return nn.Dense(2)(x.reshape((x.shape[0], -1)))


class EquinoxCNN(eqx.Module):
    one: eqx.nn.Conv2d
    two: eqx.nn.Conv2d
    three: eqx.nn.ConvTranspose2d
    last: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 4)
        self.one = eqx.nn.Conv2d(2, 4, 3, padding=1, key=keys[0])
        self.two = eqx.nn.Conv2d(4, 4, 2, stride=2, groups=2, key=keys[1])
        self.three = eqx.nn.ConvTranspose2d(4, 2, 2, stride=2, key=keys[2])
        self.last = eqx.nn.Linear(32, 2, key=keys[3])

    def __call__(self, x):
        x = jnp.tanh(self.three(jnp.tanh(self.two(jnp.tanh(self.one(x))))))
        return self.last(x.reshape(-1))


class EquinoxConv(eqx.Module):
    conv: eqx.nn.Conv
    last: eqx.nn.Linear

    def __init__(self, rank):
        keys = jax.random.split(jax.random.key(0))
        self.conv = eqx.nn.Conv(rank, 2, 3, 2, key=keys[0])
        self.last = eqx.nn.Linear(3 * 2**rank, 2, key=keys[1])

    def __call__(self, x):
        return self.last(jnp.tanh(self.conv(x)).reshape(-1))


class Norms(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.LayerNorm()(nn.Dense(6)(x))
        x = nn.RMSNorm()(jnp.tanh(nn.Dense(6)(x)))
        x = nn.GroupNorm(num_groups=2)(jnp.tanh(nn.Dense(6)(x)))
        return nn.Dense(2)(jnp.tanh(x)).mean(axis=1)


class BatchNormed(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4)(x))
        return nn.Dense(2)(jnp.tanh(x))


def batch_norm():
    x = normal(9, N, 3)
    variables = widened(jax.jit(BatchNormed().init)(jax.random.key(0), x))
    stats = jax.tree.map(lambda a: a + 0.3, variables["batch_stats"])
    apply = lambda p, inputs: BatchNormed().apply(
        {"params": p, "batch_stats": inputs["stats"]}, inputs["x"]
    )
    inputs = {"x": x, "stats": stats}
    return Case(apply, variables["params"], inputs, {"x": 0, "stats": None})


TOKENS = jnp.array([[0, 2, 2], [1, 0, 4], [3, 3, 3], [4, 1, 2]])


class Embedded(nn.Module):
    tied: bool

    @nn.compact
    def __call__(self, tokens):
        table = nn.Embed(5, 4)
        places = nn.Embed(3, 4)(jnp.arange(tokens.shape[1]))
        x = nn.Dense(4)(jnp.tanh(table(tokens) + places[None]))
        return table.attend(x) if self.tied else nn.Dense(2)(x)


class Attention(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=2)(h, h)
        return x + nn.Dense(4)(nn.gelu(nn.Dense(6)(nn.LayerNorm()(x))))


class EquinoxTransformer(eqx.Module):
    tokens: eqx.nn.Embedding
    places: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    dense: eqx.nn.Linear

    def __init__(self):
        keys = jax.random.split(jax.random.key(0), 4)
        self.tokens = eqx.nn.Embedding(5, 4, key=keys[0])
        self.places = eqx.nn.Embedding(3, 4, key=keys[1])
        self.attention = eqx.nn.MultiheadAttention(2, 4, key=keys[2])
        self.norm = eqx.nn.LayerNorm(4)
        self.dense = eqx.nn.Linear(4, 3, key=keys[3])

    def __call__(self, tokens):
        x = jax.vmap(self.tokens)(tokens)
        x = x + jax.vmap(self.places)(jnp.arange(tokens.shape[0]))
        h = jax.vmap(self.norm)(x)
        x = x + self.attention(h, h, h)
        return jax.vmap(self.dense)(jnp.tanh(x))


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2)(nn.RNN(self.cell)(x)[:, -1])

"""Small models of every kind, spelled in every library: name -> Case."""

from __future__ import annotations

import functools
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


def mlp_params():
    return {
        "w1": normal(0, 3, 5),
        "b1": normal(1, 5),
        "w2": normal(2, 5, 2),
        "b2": normal(3, 2),
    }


def mlp(p, x):
    return jnp.tanh(x @ p["w1"] + p["b1"][None]) @ p["w2"] + p["b2"][None]


def plain():
    return Case(mlp, mlp_params(), normal(9, N, 3))


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


def gru_by_scan():
    params = {"x": normal(0, 3, 6), "h": normal(1, 2, 6), "b": normal(2, 6)}

    def apply(p, x):
        def step(h, x):
            a, b = x @ p["x"] + p["b"][None], h @ p["h"]
            r = jax.nn.sigmoid(a[:, :2] + b[:, :2])
            u = jax.nn.sigmoid(a[:, 2:4] + b[:, 2:4])
            new = jnp.tanh(a[:, 4:] + r * b[:, 4:])
            return u * h + (1 - u) * new, None

        start = jnp.zeros((x.shape[0], 2), x.dtype)
        return jax.lax.scan(step, start, jnp.swapaxes(x, 0, 1))[0]

    return Case(apply, params, normal(9, N, 3, 3))


def layers_params():
    return {"w": normal(0, 3, 4, 4), "b": normal(1, 3, 4), "o": normal(2, 4, 2)}


def scan_over_layers(remat=False):
    def layer(h, wb):
        w, b = wb
        return jnp.tanh(h @ w + b[None]), None

    body = jax.checkpoint(layer) if remat else layer

    def apply(p, x):
        return jax.lax.scan(body, x, (p["w"], p["b"]))[0] @ p["o"]

    return Case(apply, layers_params(), normal(9, N, 4))


def experts():
    params = {"w": normal(0, 3, 4), "v": normal(1, 3, 4), "o": normal(2, 4, 2)}

    def apply(p, inputs):
        x, which = inputs
        one = lambda x: jnp.tanh(x @ p["w"])
        two = lambda x: jnp.sin(x @ p["v"])
        return jax.lax.cond(which > 0, one, two, x) @ p["o"]

    return Case(apply, params, (normal(9, N, 3), jnp.array(1)), (0, None))


def ensemble():
    params = jax.tree.map(lambda a: jnp.stack([a, 0.5 * a]), mlp_params())
    members = jax.vmap(mlp, in_axes=(0, None), out_axes=1)
    return Case(lambda p, x: members(p, x), params, normal(9, N, 3))


def potential(p, x):
    return (jnp.tanh(x @ p["w1"] + p["b1"]) @ p["w2"])[0]


def pinn_params():
    return {"w1": normal(0, 2, 4), "b1": normal(1, 4), "w2": normal(2, 4, 1)}


def pinn_hessian():
    def one(p, x):
        return jnp.trace(jax.hessian(functools.partial(potential, p))(x))

    apply = lambda p, x: jax.vmap(functools.partial(one, p))(x)[:, None]
    return Case(apply, pinn_params(), normal(9, N, 2))


def pinn_forward():
    def one(p, x):
        u = functools.partial(potential, p)
        first = lambda x, e: jax.jvp(u, (x,), (e,))[1]
        second = lambda e: jax.jvp(lambda x: first(x, e), (x,), (e,))[1]
        return sum(second(e) for e in jnp.eye(2))

    apply = lambda p, x: jax.vmap(functools.partial(one, p))(x)[:, None]
    return Case(apply, pinn_params(), normal(9, N, 2))


def attention_by_einsum():
    shapes = {"q": (4, 2, 3), "k": (4, 2, 3), "v": (4, 2, 3), "o": (2, 3, 4)}
    params = {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}

    def apply(p, x):
        q, k, v = (jnp.einsum("btd,dhe->bthe", x, p[n]) for n in "qkv")
        weights = jax.nn.softmax(jnp.einsum("bthe,bshe->bhts", q, k))
        return jnp.einsum("bhts,bshe,hed->btd", weights, v, p["o"])

    return Case(apply, params, normal(9, N, 3, 4))


def tied():
    params = {"w": normal(0, 3, 5), "o": normal(1, 3, 2)}
    apply = lambda p, x: jnp.tanh(x @ p["w"]) @ p["w"].T @ p["o"]
    return Case(apply, params, normal(9, N, 3))


def fused_projection():
    params = {"qkv": normal(0, 4, 6), "slices": normal(1, 4, 6), "o": normal(2, 2, 2)}

    def apply(p, x):
        q, k, v = jnp.split(x @ p["qkv"], 3, axis=-1)
        a, b = x @ p["slices"][:, :2], x @ p["slices"][:, 2:4]
        return (jnp.tanh(q * k) + v * jnp.sin(a) + b) @ p["o"]

    return Case(apply, params, normal(9, N, 4))


ZOO = {
    "plain": plain,
    "linen": lambda: of_linen(LinenMLP(), normal(9, N, 3)),
    "nnx": lambda: of_nnx(NnxMLP(), normal(9, N, 3)),
    "equinox": lambda: of_equinox(
        lambda: eqx.nn.MLP(3, 2, 5, 2, activation=jnp.tanh, key=jax.random.key(0)),
        normal(9, N, 3),
    ),
    "haiku": lambda: of_haiku(
        lambda x: hk.nets.MLP([5, 2], activation=jnp.tanh)(x), normal(9, N, 3)
    ),
    "linen cnn": lambda: of_linen(LinenCNN(), normal(9, N, 6, 6, 2)),
    "linen conv 1d": lambda: of_linen(LinenConvs(1), normal(9, N, 4, 2)),
    "linen conv 3d": lambda: of_linen(LinenConvs(3), normal(9, N, 3, 3, 3, 2)),
    "equinox cnn": lambda: of_equinox(EquinoxCNN, normal(9, N, 2, 4, 4)),
    "equinox conv 1d": lambda: of_equinox(lambda: EquinoxConv(1), normal(9, N, 2, 3)),
    "equinox conv 3d": lambda: of_equinox(
        lambda: EquinoxConv(3), normal(9, N, 2, 3, 3, 3)
    ),
    "norms": lambda: of_linen(Norms(), normal(9, N, 2, 3)),
    "batch norm": batch_norm,
    "embedding": lambda: of_linen(Embedded(tied=False), TOKENS),
    "tied embedding": lambda: of_linen(Embedded(tied=True), TOKENS),
    "attention": lambda: of_linen(Attention(), normal(9, N, 3, 4)),
    "attention by einsum": attention_by_einsum,
    "equinox transformer": lambda: of_equinox(EquinoxTransformer, TOKENS),
    "lstm": lambda: of_linen(
        Recurrent(nn.LSTMCell(2, param_dtype=jnp.float64)), normal(9, N, 3, 3)
    ),
    "gru": lambda: of_linen(
        Recurrent(nn.GRUCell(2, param_dtype=jnp.float64)), normal(9, N, 3, 3)
    ),
    "gru by scan": gru_by_scan,
    "scan over layers": scan_over_layers,
    "scan and remat": lambda: scan_over_layers(remat=True),
    "experts": experts,
    "ensemble": ensemble,
    "pinn by hessian": pinn_hessian,
    "pinn forwards": pinn_forward,
    "tied": tied,
    "fused projection": fused_projection,
}
# Each is made once, whichever tests want it.
ZOO = {name: functools.cache(make) for name, make in ZOO.items()}

# The same kinds of layer once more, in another library or another spelling: that their
# uses are found is tested with the layers, and what follows from the uses need not be.
AGAIN = {"linen", "nnx", "equinox", "haiku", "linen conv 1d", "equinox cnn"}
AGAIN |= {"equinox conv 3d", "attention by einsum", "equinox transformer", "gru"}
AGAIN |= {"gru by scan", "pinn forwards"}

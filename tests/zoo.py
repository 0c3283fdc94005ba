"""Small models of every kind, spelled in every library: name -> Case."""

from __future__ import annotations

import functools

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
from zoo_libraries import (
    TOKENS,
    Attention,
    Case,
    Embedded,
    EquinoxCNN,
    EquinoxConv,
    EquinoxTransformer,
    LinenCNN,
    LinenConvs,
    LinenMLP,
    N,
    NnxMLP,
    Norms,
    Recurrent,
    batch_norm,
    normal,
    of_equinox,
    of_haiku,
    of_linen,
    of_nnx,
)


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


def map_over_examples():
    """Two dense layers, the first over a loop of another kind each time."""
    params = {"w": normal(0, 3, 4), "b": normal(1, 4), "o": normal(2, 4, 2)}

    def apply(p, x):
        return jax.lax.map(lambda x: jnp.tanh(x @ p["w"] + p["b"]) @ p["o"], x)

    return Case(apply, params, normal(9, N, 3))


def loop_over_examples():
    params = {"w": normal(0, 3, 4), "o": normal(2, 4, 2)}

    def apply(p, x):
        one = lambda i, h: h.at[i].set(jnp.tanh(x[i] @ p["w"]))
        h = jax.lax.fori_loop(0, x.shape[0], one, jnp.zeros((x.shape[0], 4)))
        step = lambda n, h: (n + 1, n * 0.0 + h @ p["o"])
        return jax.lax.scan(step, 0, h, reverse=True)[1]

    return Case(apply, params, normal(9, N, 3))


def experts():
    params = {"w": normal(0, 3, 4), "v": normal(1, 3, 4), "o": normal(2, 4, 2)}

    def apply(p, inputs):
        x, which = inputs
        one = lambda x: jnp.tanh(x @ p["w"])
        two = lambda x: jnp.sin(x @ p["v"])
        return jax.lax.cond(which > 0, one, two, x) @ p["o"]

    return Case(apply, params, (normal(9, N, 3), jnp.array(1)), (0, None))


def experts_by_index():
    """Two routings: one expert an example, and two of three for each of two tokens."""
    params = {"w": normal(0, 3, 3, 4), "b": normal(1, 3, 4), "v": normal(2, 3, 2, 4)}

    def apply(p, inputs):
        x, one, two = inputs
        sent = jnp.einsum("nti,nio->nto", x, p["w"][one]) + p["b"][one][:, None]
        mixed = jnp.einsum("ntd,ntkcd->ntkc", jnp.tanh(sent), p["v"][two])
        return jnp.sum(jnp.sin(mixed), axis=2)

    inputs = normal(9, N, 2, 3), jnp.array([0, 2, 2, 0])
    which = jnp.arange(4 * N).reshape(N, 2, 2) * 5 % 3
    return Case(apply, params, (*inputs, which))


def low_rank():
    """A weight with an update of low rank, merged, and a product read transposed."""
    shapes = {
        "w": (3, 4),
        "a": (3, 2),
        "b": (2, 4),
        "c": (5, 2),
        "d": (2, 4),
        "o": (5,),
    }
    params = {n: normal(i, *s) for i, (n, s) in enumerate(shapes.items())}

    def apply(p, x):
        h = jnp.tanh(x @ (p["w"] + 0.5 * (p["a"] @ p["b"])))
        return h @ (p["c"] @ p["d"]).T + p["o"][None]

    return Case(apply, params, normal(9, N, 3))


def masked():
    """A weight times a constant, one over a fixed norm, one plus its transpose."""
    params = {"w": normal(0, 3, 4), "v": normal(1, 4, 3), "s": normal(2, 3, 3)}
    params |= {"b": normal(3, 4), "k": normal(4, 2, 3, 3)}

    def apply(p, inputs):
        x, mask = inputs
        norm = jnp.sqrt(jnp.sum(p["v"] ** 2, axis=0, keepdims=True))
        h = jnp.tanh(x @ (p["w"] * mask) + p["b"][None, None])
        h = h @ (p["v"] / jax.lax.stop_gradient(norm))
        kernel = jnp.where(mask[None, :, :3] > 0, p["k"], 0.0)
        h = jax.lax.conv_general_dilated(
            h, kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
        )
        return jnp.tanh(h) @ (p["s"] + p["s"].T)

    return Case(apply, params, (normal(9, N, 2, 3), normal(8, 3, 4)), (0, None))


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
    "map over examples": map_over_examples,
    "loop over examples": loop_over_examples,
    "experts": experts,
    "experts by index": experts_by_index,
    "low rank": low_rank,
    "masked": masked,
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
AGAIN |= {"gru by scan", "pinn forwards", "map over examples", "loop over examples"}
AGAIN |= {"linen conv 3d", "equinox conv 1d", "scan and remat", "experts"}

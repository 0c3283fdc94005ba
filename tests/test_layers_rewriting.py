"""Parameters that are joined for one product have the factors of a product each."""

from __future__ import annotations

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_problems import FACTORS, close, statistics
from zoo import ZOO

from natgrad import layers
from natgrad.layers import rewriting

N, T, I, O = 6, 3, 4, 5
NAMES = ("a", "b", "c")


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


def draws(*shapes):
    draw = np.random.default_rng(0)
    return [jnp.asarray(draw.normal(size=shape)) for shape in shapes]


X, ROWS, Z = draws((N, I), (N, T, I), (N, T, O))
KERNELS = {
    name: {"w": w, "b": b}
    for name, w, b in zip(NAMES, draws(*3 * [(I, O)]), draws(*3 * [(O,)]), strict=True)
}


def gated(one, two, three):
    return jnp.tanh(one) * jax.nn.sigmoid(two) + three


def apart(p, x):
    return gated(*(x @ p[name]["w"] + p[name]["b"] for name in NAMES))


def joined(p, axis=1):
    return jnp.concatenate([p[name]["w"] for name in NAMES], axis)


def bias(p):
    return jnp.concatenate([p[name]["b"] for name in NAMES])


def side_by_side(p, x):
    return gated(*jnp.split(x @ joined(p) + bias(p), 3, -1))


def one_above_the_other(p, x):
    rows = jnp.concatenate([p[name]["w"].T for name in NAMES], 0)
    one = lambda x: rows @ x + bias(p)
    for _ in range(x.ndim - 1):
        one = jax.vmap(one)
    return gated(*jnp.split(one(x), 3, -1))


def stacked(p, x):
    w = jnp.stack([p[name]["w"] for name in NAMES])
    z = jnp.einsum("...i,kio->k...o", x, w)
    return gated(*(z[k] + p[name]["b"] for k, name in enumerate(NAMES)))


def unstacked(p, x):
    w, b = (jnp.stack([p[name][kind] for name in NAMES]) for kind in "wb")
    shape = (3, *(1,) * (x.ndim - 1), O)
    return gated(*jnp.unstack(jnp.einsum("...i,kio->k...o", x, w) + b.reshape(shape)))


def sliced(p, x):
    z = (0.5 * x) @ (2.0 * joined(p)) + bias(p).reshape((1,) * (x.ndim - 1) + (-1,))
    return gated(*(z[..., k * O : (k + 1) * O] for k in range(3)))


def in_a_call(p, x):
    return jax.jit(jax.checkpoint(side_by_side))(p, x)


def in_a_loop(p, x):
    w = joined(p)  # outside of it; the bias inside
    gates = lambda row: jnp.split(row @ w + bias(p), 3, -1)
    return over_time(lambda row: gated(*gates(row)), x)


def over_time(layer, x):
    step = lambda carry, row: (carry, layer(row))
    return jnp.moveaxis(jax.lax.scan(step, 0, jnp.moveaxis(x, -2, 0))[1], 0, -2)


def apart_in_a_loop(p, x):
    return over_time(lambda row: apart(p, row), x)


@functools.cache
def reference(apply):
    return apply(KERNELS, ROWS), statistics(apply, KERNELS, ROWS, Z)


SPELLINGS = {
    "side by side": side_by_side,
    "one above the other": one_above_the_other,
    "stacked": stacked,
    "stacked and unstacked": unstacked,
    "sliced and scaled": sliced,
    "jit and checkpoint": in_a_call,
    "scan": in_a_loop,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_joined_parameters_have_the_factors_of_a_product_each(spelling):
    apply = SPELLINGS[spelling]
    # What the steps of a loop share counts as uses, and positions of a batch do not.
    other = apart_in_a_loop if spelling == "scan" else apart
    z, (plain, expected) = reference(other)
    close(apply(KERNELS, ROWS), z)
    blocks, found = statistics(apply, KERNELS, ROWS, Z)
    assert set(blocks) == set(plain) == {f"{name}/w" for name in NAMES}
    for name, block in blocks.items():
        assert block.bias
        assert block.kind == "dense"
        for reading in FACTORS:
            mine, plain = found[name][reading], expected[name][reading]
            close(jnp.kron(mine["A"], mine["G"]), jnp.kron(plain["A"], plain["G"]))


def test_one_bias_of_a_joined_product_is_a_part_for_each():
    def apply(p, x):
        z = x @ joined(p["kernels"]) + p["bias"]
        return gated(*jnp.split(z, 3, -1))

    params = {"kernels": KERNELS, "bias": bias(KERNELS)}
    with layers.verify():
        found = layers.capture(apply, params, X)
    kinds = sorted(block.kind for block in found.blocks)
    assert kinds == ["dense"] * 3 + ["shift"] * 3


def test_rows_that_are_joined_are_a_sum_of_products():
    one = lambda p, x: jnp.concatenate([x, x**2, jnp.sin(x)], -1) @ joined(p, 0)
    two = lambda p, x: x @ p["a"]["w"] + x**2 @ p["b"]["w"] + jnp.sin(x) @ p["c"]["w"]
    found, expected = (statistics(f, KERNELS, ROWS, Z) for f in (one, two))
    assert found[0].keys() == expected[0].keys()
    for name in NAMES:
        jax.tree.map(close, found[1][f"{name}/w"], expected[1][f"{name}/w"])


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: jnp.tanh(x @ jnp.tanh(joined(p))),
        lambda p, x: x @ joined(p)[:, 1:],
    ],
    ids=["changed first", "cut elsewhere"],
)
def test_what_no_product_can_be_made_of_has_exact_blocks(apply):
    with layers.verify():
        found = layers.capture(apply, KERNELS, X)
    assert all(block.kind == "exact" for block in found.blocks), found.blocks


class Recurrent(nn.Module):
    cell: type

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, param_dtype=float)(
            nn.RNN(self.cell(O, name="cell", dtype=float, param_dtype=float))(x)[:, -1]
        )


def test_an_optimized_lstm_has_the_factors_of_a_plain_one():
    """flax's `OptimizedLSTMCell` is `LSTMCell` with its gates in one product."""
    found = []
    for cell in (nn.LSTMCell, nn.OptimizedLSTMCell):
        net = Recurrent(cell)
        shapes = jax.eval_shape(net.init, jax.random.key(0), ROWS)
        leaves, structure = jax.tree.flatten(shapes)
        params = structure.unflatten(draws(*(leaf.shape for leaf in leaves)))
        found.append(statistics(net.apply, params, ROWS, Z[:, 0, :2])[1])
    assert len(found[0]) == 9
    jax.tree.map(close, *found)


def side(p, *more):
    return jnp.concatenate([p["a"]["w"], p["b"]["w"], *more], 1)


def pile(p):
    return jnp.stack([p["a"]["w"], p["b"]["w"]])


def one_of(p):
    return jnp.stack([p["a"]["b"][0]])


def summed(x, w):
    step = lambda total, one: (total + x @ one, None)
    return jax.lax.scan(step, jnp.zeros((N, O)), w)[0]


def switched(x, w):
    return jax.lax.cond(jnp.sum(x) > 0, lambda w: x @ w, lambda w: 2 * x @ w, w)


ODD = {
    "one that is repeated": lambda p, x: x @ jnp.broadcast_to(one_of(p), (I, O)),
    "beside one column": lambda p, x: x[:, :1] + bias(p)[None],
    "one beside columns": lambda p, x: x + one_of(p)[None],
    "transposed": lambda p, x: (x @ side(p)).T.reshape(2, O, N).sum(0),
    "by itself": lambda p, x: (x @ side(p)) ** 2 * (x @ side(p)),
    "by rows": lambda p, x: x @ side(p) @ side(p).T,
    "of a batch": lambda p, x: jnp.einsum("kni,kio->kno", jnp.stack([x, x]), pile(p)),
    "in a switch": lambda p, x: switched(x, side(p)),
    "with nothing": lambda p, x: x @ side(p, p["c"]["w"][:, :0]),
    "beside zeros": lambda p, x: x @ side(p, jnp.zeros((I, 2))),
    "twice": lambda p, x: x @ side(p, p["a"]["w"]),
    "scanned": lambda p, x: summed(x, pile(p)),
}


def test_odd_programs_with_joined_parameters_give_the_same():
    assert all(
        rewriting.hides_uses(jax.make_jaxpr(apply)(KERNELS, X), 2 * len(NAMES))
        for apply in ODD.values()
    )
    both = lambda p, x: {
        name: (apply(p, x), rewriting.rewritten(apply)(p, x))
        for name, apply in ODD.items()
    }
    for plain, again in jax.jit(both)(KERNELS, X).values():
        close(again, plain)


@pytest.mark.parametrize("name", ["scan and remat", "gru by scan", "experts by index"])
def test_a_program_that_hides_nothing_gives_the_same(name):
    case = ZOO[name]()
    again = jax.jit(rewriting.rewritten(case.apply))(case.params, case.inputs)
    jax.tree.map(close, again, jax.jit(case.apply)(case.params, case.inputs))

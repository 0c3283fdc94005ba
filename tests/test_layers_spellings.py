"""One function in many spellings has one set of factors."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from layer_problems import (
    FACTORS,
    H,
    I,
    N,
    O,
    X,
    Z,
    close,
    hom,
    reference,
    statistics,
)


def vmapped(p, x):
    return jax.vmap(lambda x: p["w2"].T @ jnp.tanh(p["w1"].T @ x + p["b1"]) + p["b2"])(
        x
    )


def by_einsum(p, x):
    h = jnp.tanh(jnp.einsum("io,ni->no", p["w1"], x) + p["b1"][None])
    return jnp.einsum("nh,ho->on", h, p["w2"]).T + p["b2"][None]


def jitted(p, x):
    dense = jax.jit(lambda x, w: x @ w)
    add = jax.jit(lambda z, b: z + b[None])
    return add(dense(jnp.tanh(add(dense(x, p["w1"]), p["b1"])), p["w2"]), p["b2"])


def remat(p, x):
    layer = lambda x, w, b: jnp.tanh(x @ w + b[None])
    h = jax.checkpoint(layer, policy=jax.checkpoint_policies.dots_saveable)(
        x, p["w1"], p["b1"]
    )
    return h @ p["w2"] + p["b2"][None]


def scaled(p, x):
    root = jnp.sqrt(4.0)
    h = jnp.tanh((0.5 * x) @ (p["w1"] / 0.5) + p["b1"][None])
    return (h / root) @ (root * p["w2"]) + p["b2"][None]


def reshaped(p, x):
    w = jnp.flip(jnp.flip(p["w1"].T.reshape(1, H, I)[0].T, 0), 0)
    z = (x @ w).reshape(-1, 1, H) + p["b1"].reshape(1, 1, -1)
    return jnp.tanh(z[:, 0]) @ jax.lax.optimization_barrier(p["w2"]) + p["b2"][None]


def custom(p, x):
    dense = jax.custom_jvp(lambda x, w: x @ w)
    dense.defjvp(lambda a, t: (a[0] @ a[1], t[0] @ a[1] + a[0] @ t[1]))
    return dense(jnp.tanh(dense(x, p["w1"]) + p["b1"][None]), p["w2"]) + p["b2"][None]


def conditional(p, x):
    first = lambda x: x @ p["w1"] + p["b1"][None]
    z = jax.lax.cond(jnp.sum(x**2) >= 0, first, lambda x: 0 * first(x), x)
    return jnp.tanh(z) @ p["w2"] + p["b2"][None]


def one_step_scan(p, x):
    z = jax.lax.scan(lambda c, _: (c, x @ p["w1"] + p["b1"][None]), 0, None, length=1)
    return jnp.tanh(z[1][0]) @ p["w2"] + p["b2"][None]


SPELLINGS = {
    "x @ w": zoo.mlp,
    "w @ x by vmap": vmapped,
    "einsum": by_einsum,
    "nested jit": jitted,
    "checkpoint": remat,
    "scaled weight": scaled,
    "views": reshaped,
    "custom_jvp": custom,
    "cond": conditional,
    "scan": one_step_scan,
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_has_the_factors_made_by_hand(name):
    blocks, found = statistics(SPELLINGS[name], zoo.mlp_params(), X, Z)
    for layer, (a, g) in zip(("w1", "w2"), reference(), strict=True):
        assert blocks[layer].bias
        for reading in FACTORS:
            factors = found[layer][reading]
            close(jnp.kron(factors["A"], factors["G"]), jnp.kron(a, g))


def linen():
    case = zoo.of_linen(zoo.LinenMLP(), X)
    p = zoo.mlp_params()
    one, two = (
        {"kernel": p["w1"], "bias": p["b1"]},
        {"kernel": p["w2"], "bias": p["b2"]},
    )
    params = {"params": {"Dense_0": one, "Dense_1": two}}
    return case.apply, params


def nnx_mlp():
    case, p = zoo.of_nnx(zoo.NnxMLP(), X), zoo.mlp_params()
    leaves = [p["b1"], p["w1"], p["b2"], p["w2"]]
    return case.apply, jax.tree.unflatten(jax.tree.structure(case.params), leaves)


def equinox_mlp():
    net = lambda: eqx.nn.MLP(I, O, H, 1, activation=jnp.tanh, key=jax.random.key(0))
    case, p = zoo.of_equinox(net, X), zoo.mlp_params()
    leaves = [p["w1"].T, p["b1"], p["w2"].T, p["b2"]]
    return case.apply, jax.tree.unflatten(jax.tree.structure(case.params), leaves)


def haiku_mlp():
    case = zoo.ZOO["haiku"]()
    p = zoo.mlp_params()
    leaves = [p["b1"], p["w1"], p["b2"], p["w2"]]
    return case.apply, jax.tree.unflatten(jax.tree.structure(case.params), leaves)


LIBRARIES = {
    "flax.linen": linen,
    "flax.nnx": nnx_mlp,
    "equinox": equinox_mlp,
    "haiku": haiku_mlp,
}


@pytest.mark.parametrize("library", LIBRARIES)
def test_every_library_has_the_factors_made_by_hand(library):
    apply, params = LIBRARIES[library]()
    blocks, found = statistics(apply, params, X, Z)
    assert len(blocks) == 2
    for (name, block), (a, g) in zip(blocks.items(), reference(), strict=True):
        factors = found[name]["expand"]
        if library == "equinox":
            # Its weights are [O, I], and the block's matrix is [I + 1, O] all the same.
            assert block.weight.shape == (block.outputs, block.inputs)
        close(factors["A"], a)
        close(factors["G"], g)


def test_a_bias_folded_into_the_weight_has_the_same_factors():
    p = zoo.mlp_params()
    folded = {
        "w1": jnp.concatenate([p["w1"], p["b1"][None]]),
        "w2": jnp.concatenate([p["w2"], p["b2"][None]]),
    }
    apply = lambda p, x: hom(jnp.tanh(hom(x) @ p["w1"])) @ p["w2"]
    _, found = statistics(apply, folded, X, Z)
    for layer, (a, g) in zip(("w1", "w2"), reference(), strict=True):
        close(found[layer]["expand"]["A"], a)
        close(found[layer]["expand"]["G"], g)


def test_casts_to_bfloat16_keep_float32_factors():
    low = lambda tree: jax.tree.map(lambda a: a.astype(jnp.bfloat16), tree)
    apply = lambda p, x: zoo.mlp(low(p), low(x)).astype(jnp.float32)
    params = jax.tree.map(lambda a: a.astype(jnp.float32), zoo.mlp_params())
    _, found = statistics(apply, params, X.astype(jnp.float32), Z.astype(np.float32))
    for layer, (a, g) in zip(("w1", "w2"), reference(), strict=True):
        assert found[layer]["expand"]["A"].dtype == jnp.float32
        close(found[layer]["expand"]["A"], a, 3e-2)
        close(found[layer]["expand"]["G"], g, 3e-2)


def test_stacked_layers_have_the_factors_of_the_unrolled_ones():
    apply, params, x, _ = zoo.scan_over_layers()
    z = np.random.default_rng(0).standard_normal((N, 2))

    def unrolled(p, x):
        for w, b in zip(p["w"], p["b"], strict=True):
            x = jnp.tanh(x @ w + b[None])
        return x @ p["o"]

    apart = {**params, "w": list(params["w"]), "b": list(params["b"])}
    for scanned in (apply, zoo.scan_over_layers(remat=True).apply):
        _, found = statistics(scanned, params, x, z)
        _, plain = statistics(unrolled, apart, x, z)
        for i in range(3):
            for side in "AG":
                stacked = found["w"]["expand"][side][i]
                close(stacked, plain[f"w/{i}"]["expand"][side])


@pytest.mark.parametrize("slices", [list, jnp.unstack], ids=["index", "unstack"])
def test_indexing_stacked_layers_makes_one_block_a_layer(slices):
    apply, params, x, _ = zoo.scan_over_layers()
    z = np.random.default_rng(0).standard_normal((N, 2))

    def indexed(p, x):
        for w, b in zip(slices(p["w"]), slices(p["b"]), strict=True):
            x = jnp.tanh(x @ w + b[None])
        return x @ p["o"]

    blocks, found = statistics(indexed, params, x, z)
    _, stacked = statistics(apply, params, x, z)
    names = [name for name in blocks if name.startswith("w")]
    assert len(names) == 3
    for i, name in enumerate(names):
        inner = blocks[name].inputs
        close(
            found[name]["expand"]["A"][:inner, :inner],
            stacked["w"]["expand"]["A"][i, :inner, :inner],
        )
        close(found[name]["expand"]["G"], stacked["w"]["expand"]["G"][i])

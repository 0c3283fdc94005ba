"""Capture: spellings agree, factors are those made by hand, and nothing is silent."""

from __future__ import annotations

import functools
import re
import subprocess
import sys
import textwrap

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from jax.test_util import check_grads

from natgrad import layers

N, I, H, O = 4, 3, 5, 2
X = zoo.normal(9, N, I)
Z = np.random.default_rng(3).standard_normal((N, O))
FACTORS = {"expand": layers.Expand(), "reduce": layers.Reduce()}
hom = lambda x: jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], axis=-1)
outer = lambda x: jnp.einsum("...i,...j->ij", x, x)


def close(one, two, rtol=1e-10):
    scale = max(float(np.max(np.abs(two))), 1e-30)
    assert np.shape(one) == np.shape(two)
    assert np.max(np.abs(np.asarray(one) - np.asarray(two))) / scale < rtol


def statistics(apply, params, inputs, cotangent, wanted=None, **kwargs):
    """(blocks by name, statistics) for one cotangent."""
    captured = layers.capture(apply, params, inputs, **kwargs)
    pull = lambda p, x: captured.pull(wanted or FACTORS, p, x)[1](cotangent)[1]
    return {b.name: b for b in captured.blocks}, jax.jit(pull)(params, inputs)


def by_hand(p, x, z):
    """Inputs and output gradients of the two layers of the reference network."""
    h = jnp.tanh(x @ p["w1"] + p["b1"][None])
    return (x, (z @ p["w2"].T) * (1 - h**2)), (h, z)


# --- One function, many spellings ---


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


@functools.cache
def reference():
    p = zoo.mlp_params()
    return [(outer(hom(x)), outer(g)) for x, g in by_hand(p, X, Z)]


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
    net = eqx.nn.MLP(I, O, H, 1, activation=jnp.tanh, key=jax.random.key(0))
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


def test_indexing_stacked_layers_makes_one_block_a_layer():
    apply, params, x, _ = zoo.scan_over_layers()
    z = np.random.default_rng(0).standard_normal((N, 2))

    def indexed(p, x):
        for i in range(3):
            x = jnp.tanh(x @ p["w"][i] + p["b"][i][None])
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


# --- Factors made by hand ---


def test_a_layer_used_twice_adds_its_uses():
    p = {"w": zoo.normal(0, 3, 3), "b": zoo.normal(1, 3)}
    layer = lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None])
    z = np.random.default_rng(0).standard_normal((N, 3))
    _, found = statistics(lambda p, x: layer(p, layer(p, x)), p, X, z)
    h = layer(p, X)
    g2 = z * (1 - layer(p, h) ** 2)
    g1 = (g2 @ p["w"].T) * (1 - h**2)
    factors = found["w"]["expand"]
    close(factors["A"], outer(hom(X)) + outer(hom(h)))
    close(factors["G"], outer(g1) + outer(g2))
    assert factors["rows"] == 2 * N


def test_a_recurrence_adds_its_steps():
    p = {"w": zoo.normal(0, 3, 3), "u": zoo.normal(1, 3, 3)}
    x = zoo.normal(2, 5, N, 3)
    step = lambda p, h, x: jnp.tanh(h @ p["w"] + x @ p["u"])

    def apply(p, x):
        x = jnp.swapaxes(x, 0, 1)
        start = jnp.zeros(x.shape[1:])
        return jax.lax.scan(lambda h, x: (step(p, h, x), None), start, x)[0]

    z = np.random.default_rng(0).standard_normal((N, 3))
    _, found = statistics(apply, p, jnp.swapaxes(x, 0, 1), z)
    states = [jnp.zeros((N, 3))]
    for t in range(5):
        states.append(step(p, states[-1], x[t]))
    g, a_sum, g_sum = jnp.asarray(z), 0.0, 0.0
    for t in reversed(range(5)):
        g = g * (1 - states[t + 1] ** 2)
        a_sum, g_sum = a_sum + outer(states[t]), g_sum + outer(g)
        g = g @ p["w"].T
    close(found["w"]["expand"]["A"], a_sum)
    close(found["w"]["expand"]["G"], g_sum)
    assert found["w"]["expand"]["rows"] == 5 * N


def test_expand_and_reduce_are_their_definitions_over_a_sequence():
    p = {"w": zoo.normal(0, 3, 2), "b": zoo.normal(1, 2)}
    x = zoo.normal(2, N, 6, 3)
    z = np.random.default_rng(0).standard_normal((N, 6, 2))
    apply = lambda p, x: x @ p["w"] + p["b"][None, None]
    merged = lambda p, x: (x.reshape(-1, 3) @ p["w"] + p["b"][None]).reshape(-1, 6, 2)
    moved = lambda p, x: (
        jnp.einsum("io,tni->nto", p["w"], x.swapaxes(0, 1)) + p["b"][None, None]
    )
    for spelled in (apply, merged, moved):
        _, found = statistics(spelled, p, x, z)
        factors = found["w"]
        close(factors["expand"]["A"], outer(hom(x)))
        close(factors["expand"]["G"], outer(z))
        close(factors["reduce"]["A"], outer(hom(x).mean(1)))
        close(factors["reduce"]["G"], outer(z.sum(1)))


def test_a_convolution_has_the_factors_of_its_patches():
    p = {"w": zoo.normal(0, 3, 2, 2, 3), "b": zoo.normal(1, 3)}
    x = zoo.normal(2, N, 5, 4, 2)
    dims = ("NHWC", "HWIO", "NHWC")

    def apply(p, x):
        z = jax.lax.conv_general_dilated(
            x, p["w"], (2, 1), ((1, 1), (0, 1)), dimension_numbers=dims
        )
        return z + p["b"][None, None, None]

    shape = jax.eval_shape(apply, p, x).shape
    z = np.random.default_rng(0).standard_normal(shape)
    _, found = statistics(apply, p, x, z)
    padded = np.pad(x, ((0, 0), (1, 1), (0, 1), (0, 0)))
    patches = np.array(
        [
            [
                [
                    padded[n, 2 * i : 2 * i + 3, j : j + 2].reshape(-1)
                    for j in range(shape[2])
                ]
                for i in range(shape[1])
            ]
            for n in range(N)
        ]
    )
    close(found["w"]["expand"]["A"], outer(hom(jnp.asarray(patches))))
    close(found["w"]["expand"]["G"], outer(z))
    close(found["w"]["reduce"]["A"], outer(hom(jnp.asarray(patches.mean((1, 2))))))
    close(found["w"]["reduce"]["G"], outer(z.sum((1, 2))))


def test_a_grouped_convolution_has_one_pair_of_factors_a_group():
    p = {"w": zoo.normal(0, 2, 2, 6)}
    x = zoo.normal(2, N, 5, 4)

    def apply(p, x):
        return jax.lax.conv_general_dilated(
            x,
            p["w"],
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=2,
        )

    z = np.random.default_rng(0).standard_normal((N, 4, 6))
    blocks, found = statistics(apply, p, x, z)
    assert blocks["w"].shape == (2, 4, 3)
    for group in range(2):
        part = x[..., 2 * group : 2 * group + 2]
        patches = jnp.concatenate([part[:, :-1], part[:, 1:]], axis=-1)
        close(found["w"]["expand"]["A"][group], outer(patches))
        close(
            found["w"]["expand"]["G"][group], outer(z[..., 3 * group : 3 * group + 3])
        )


def test_a_table_counts_its_lookups():
    p = {"e": zoo.normal(0, 5, 2)}
    z = np.random.default_rng(0).standard_normal((N, 3, 2))
    blocks, found = statistics(lambda p, x: p["e"][x], p, zoo.TOKENS, z)
    assert blocks["e"].diagonal_inputs
    close(found["e"]["expand"]["A"], np.bincount(np.ravel(zoo.TOKENS), minlength=5))
    close(found["e"]["expand"]["G"], outer(z))


def test_per_head_weights_have_one_pair_of_factors_a_head():
    p = {"w": zoo.normal(0, 2, 3, 4)}
    x = zoo.normal(1, N, 5, 2, 3)
    z = np.random.default_rng(0).standard_normal((N, 5, 2, 4))
    apply = lambda p, x: jnp.einsum("nthi,hio->ntho", x, p["w"])
    blocks, found = statistics(apply, p, x, z)
    assert blocks["w"].batch == (2,)
    for head in range(2):
        close(found["w"]["expand"]["A"][head], outer(x[:, :, head]))
        close(found["w"]["reduce"]["G"][head], outer(z[:, :, head].sum(1)))


def test_a_tied_decoder_keeps_two_kronecker_terms():
    apply, p, x, _ = zoo.tied()
    z = np.random.default_rng(0).standard_normal((N, 2))
    blocks, found = statistics(apply, p, x, z)
    assert blocks["w"].roles == 2
    h = jnp.tanh(x @ p["w"])
    g_out = z @ p["o"].T
    g_in = (g_out @ p["w"]) * (1 - h**2)
    factors = found["w"]["expand"]
    close(factors["A"], outer(x))
    close(factors["G"], outer(g_in))
    close(factors["A_swapped"], outer(g_out))
    close(factors["G_swapped"], outer(h))


def test_a_bias_counts_only_where_it_is_added():
    """The tangent stream of a derivative network passes the weights, not the bias."""
    p = {"w": zoo.normal(0, 2, 3), "b": zoo.normal(1, 3)}
    x, v = zoo.normal(2, N, 2), zoo.normal(3, N, 2)

    def apply(p, inputs):
        layer = lambda x: jnp.tanh(x @ p["w"] + p["b"][None])
        return jnp.concatenate(jax.jvp(layer, (inputs[0],), (inputs[1],)), axis=1)

    z = np.random.default_rng(0).standard_normal((N, 6))
    blocks, found = statistics(apply, p, (x, v), z)
    assert blocks["w"].bias
    no_bias = jnp.concatenate([v, jnp.zeros((N, 1))], axis=1)
    close(found["w"]["expand"]["A"], outer(hom(x)) + outer(no_bias))


def test_a_bias_joins_only_where_nothing_else_reads_the_layer():
    p = {"w": zoo.normal(0, 3, 2), "b": zoo.normal(1, 2)}

    def apply(p, x):
        z = x @ p["w"]
        return jnp.tanh(z + p["b"][None]) + z

    blocks, found = statistics(apply, p, X, Z)
    assert not blocks["w"].bias
    g = Z * (1 - jnp.tanh(X @ p["w"] + p["b"][None]) ** 2)
    close(found["w"]["expand"]["G"], outer(g + Z))
    close(found["b"]["expand"]["G"], outer(g))


def test_a_positional_table_gets_each_examples_own_gradient():
    p = {"places": zoo.normal(0, 3, 2), "w": zoo.normal(1, 2, 2)}
    x = zoo.normal(2, N, 3, 2)
    z = np.random.default_rng(0).standard_normal((N, 3, 2))
    apply = lambda p, x: (x + 2.0 * p["places"][jnp.arange(3)][None]) @ p["w"]
    _, found = statistics(apply, p, x, z)
    g = 2.0 * z @ np.asarray(p["w"]).T
    close(found["places"]["expand"]["G"], outer(g))
    close(found["places"]["expand"]["A"], np.full(3, float(N)))


def test_the_branch_not_taken_has_zero_factors():
    apply, p, inputs, in_axes = zoo.experts()
    z = np.random.default_rng(0).standard_normal((N, 2))
    _, found = statistics(apply, p, inputs, z, in_axes=in_axes)
    close(found["w"]["expand"]["A"], outer(inputs[0]))
    assert float(jnp.max(found["v"]["expand"]["A"])) == 0.0
    assert float(found["v"]["expand"]["rows"]) == 0.0


def test_flipped_and_strided_slices_are_read_in_the_parameters_own_order():
    p = {"w": zoo.normal(0, 4, 6)}
    x = zoo.normal(1, N, 2)
    apply = lambda p, x: x @ p["w"][::2, ::-1][:, 1:4]
    z = np.random.default_rng(0).standard_normal((N, 3))
    blocks, found = statistics(apply, p, x, z, {"gradient": layers.Gradient()})
    (block,) = blocks.values()
    gradient = jax.grad(lambda p: jnp.sum(apply(p, x) * z))(p)
    zero = [jnp.zeros((4, 6))]
    (again,) = block.from_matrix(found[block.name]["gradient"], zero)
    close(again, gradient["w"])


# --- Refusals, fallbacks and declarations ---


def test_a_weight_that_is_not_understood_is_an_error_that_names_it():
    p = {"deep": {"w": zoo.normal(0, 3, 3)}}
    with pytest.raises(ValueError, match=r"deep/w.*exp.*declared"):
        layers.capture(lambda p, x: x @ jnp.exp(p["deep"]["w"]), p, X)


@pytest.mark.parametrize("treatment", [layers.Exact(), layers.Diagonal()])
def test_a_declared_subtree_has_the_per_example_gradients(treatment):
    p = {"deep": {"w": zoo.normal(0, 3, 2), "c": zoo.normal(1, 2)}}
    apply = lambda p, x: x @ jnp.exp(p["deep"]["w"]) * p["deep"]["c"][None]
    wanted = {"G": layers.Expand(), "squares": layers.Squares()}
    declared = {"deep": treatment}
    blocks, found = statistics(apply, p, X, Z, wanted, declared=declared)
    assert blocks["deep"].kind == type(treatment).__name__.lower()
    each = np.stack(
        [
            np.concatenate(
                [
                    np.ravel(leaf)
                    for leaf in jax.tree.leaves(
                        jax.grad(
                            lambda p, n=n: jnp.sum(apply(p, X[n : n + 1]) * Z[n][None])
                        )(p)
                    )
                ]
            )
            for n in range(N)
        ]
    )
    factor = found["deep"]["G"]["G"]
    if blocks["deep"].kind == "exact":
        close(factor, each.T @ each)
    else:
        close(factor[:, 0, 0], (each**2).sum(0))
    close(found["deep"]["squares"].reshape(-1), (each**2).sum(0))


def test_a_vector_that_is_not_understood_falls_back_and_is_named():
    p = {"w": zoo.normal(0, 3, 2), "t": zoo.normal(1)}
    apply = lambda p, x: (x @ p["w"]) * jnp.exp(p["t"])
    captured = layers.capture(apply, p, X)
    block = next(b for b in captured.blocks if b.name == "t")
    assert isinstance(block, layers.DeclaredBlock)
    assert "t: exact block, not understood: exp" in layers.table(captured, p)


def test_a_declaration_that_names_nothing_is_an_error():
    with pytest.raises(ValueError, match="names no parameter"):
        layers.capture(zoo.mlp, zoo.mlp_params(), X, declared={"w9": layers.Exact()})


def test_uses_that_disagree_about_inputs_and_outputs_are_an_error():
    p = {"w": zoo.normal(0, 3, 3)}
    apply = lambda p, x: (x @ p["w"]) * jnp.sum(x[:, None] * p["w"][None], axis=2)
    with pytest.raises(ValueError, match="disagree"):
        layers.capture(apply, p, X)


def test_a_custom_derivative_that_changes_the_gradient_is_not_inlined():
    dense = jax.custom_vjp(lambda x, w: x @ w)
    dense.defvjp(
        lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, 2.0 * r[0].T @ g)
    )
    with pytest.raises(ValueError, match="derivative of its own"):
        layers.capture(lambda p, x: dense(x, p["w"]), {"w": zoo.normal(0, 3, 2)}, X)


def test_the_proof_catches_a_use_that_was_missed(monkeypatch):
    from natgrad.layers import dense

    rows = dense.DenseUse.rows
    wrong = lambda self, operands, scale, g: rows(self, operands, scale, 1.01 * g)
    monkeypatch.setattr(dense.DenseUse, "rows", wrong)
    apply = lambda p, x: zoo.mlp(p, x)
    with pytest.raises(ValueError, match="do not account for its gradient"):
        layers.capture(apply, zoo.mlp_params(), X)


def test_a_use_without_examples_refuses_what_needs_them():
    p = {"w": zoo.normal(0, 3, 2)}
    captured = layers.capture(lambda p, x: x @ p["w"], p, X, in_axes=None)
    with pytest.raises(ValueError, match="no example axis"):
        captured.pull({"reduce": layers.Reduce()}, p, X)


def test_a_loop_over_the_batch_says_that_examples_were_lost():
    p = {"w": zoo.normal(0, 3, 2)}
    apply = lambda p, x: jnp.stack([row @ p["w"] for row in x])
    captured = layers.capture(apply, p, X)
    assert not captured.blocks[0].separate
    assert "example axis" in layers.table(captured, p)
    with pytest.raises(ValueError, match=r"'w'.*example"):
        captured.pull({"squares": layers.Squares()}, p, X)


def test_a_parameter_under_stop_gradient_is_left_uncovered():
    p = zoo.mlp_params()
    frozen = lambda p, x: zoo.mlp({**p, "w1": jax.lax.stop_gradient(p["w1"])}, x)
    captured = layers.capture(frozen, p, X)
    assert captured.uncovered == ("w1",)


def test_a_constant_entry_by_entry_mask_on_a_weight_is_refused_by_name():
    p, mask = {"w": zoo.normal(0, 3, 2)}, jnp.eye(3, 2)
    with pytest.raises(ValueError, match="entry by entry"):
        layers.capture(lambda p, x: x @ (p["w"] * mask), p, X)


# --- Transformations ---


@functools.cache
def plain_capture():
    return layers.capture(zoo.mlp, zoo.mlp_params(), X)


def factors(p, x, z):
    return plain_capture().pull({"f": layers.Expand()}, p, x)[1](z)[1]


def test_shapes_are_captured_once():
    again = layers.capture(zoo.mlp, zoo.mlp_params(), 2.0 * X)
    assert again is layers.capture(zoo.mlp, zoo.mlp_params(), X)


def test_capture_works_on_traced_values_under_jit_scan_and_vmap():
    p = zoo.mlp_params()
    captured = lambda p, x, z: layers.capture(zoo.mlp, p, x).pull(
        {"f": layers.Expand()}, p, x
    )[1](z)[1]
    expected = factors(p, X, Z)
    both = jax.jit(jax.vmap(captured, (None, 0, 0)))(
        p, jnp.stack([X, 2 * X]), np.stack([Z, Z])
    )
    _, steps = jax.lax.scan(lambda c, s: (c, captured(p, X, Z)), 0, None, length=2)
    for name in ("w1", "w2"):
        close(both[name]["f"]["G"][0], expected[name]["f"]["G"])
        close(steps[name]["f"]["A"][1], expected[name]["f"]["A"])


def test_statistics_can_be_differentiated_again():
    p = zoo.mlp_params()

    def total(p, x):
        found = factors(p, x, Z)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(found))

    check_grads(total, (p, X), order=1, modes=["rev"], rtol=1e-6)
    check_grads(total, (p, X), order=1, modes=["fwd"], rtol=1e-6)


def test_a_second_pull_of_the_same_pass_serves_sampled_labels():
    p = zoo.mlp_params()
    _, pullback = plain_capture().pull({"f": layers.Expand()}, p, X)
    (grad, one), (_, two) = pullback(Z), pullback(2 * Z)
    expected = jax.grad(lambda p: jnp.sum(zoo.mlp(p, X) * Z))(p)
    for name in p:
        close(grad[name], expected[name])
    close(two["w1"]["f"]["G"], 4 * one["w1"]["f"]["G"])


def deep(p, x):
    for w in p:
        x = jnp.tanh(x @ w)
    return x


def dots(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return len(re.findall(r" dot\(|custom_call_target=\"[^\"]*matmul", text))


@pytest.mark.parametrize("depth", [1, 4])
def test_gradient_and_factors_cost_five_dots_a_layer_and_sampled_labels_one_more(depth):
    p = [zoo.normal(i, 32, 32).astype(jnp.float32) for i in range(depth)]
    x = zoo.normal(9, 48, 32).astype(jnp.float32)
    captured = layers.capture(deep, p, x)

    def empirical(p, x):
        z, pullback = captured.pull({"f": layers.Expand()}, p, x)
        return pullback(z)

    def sampled(p, x):
        z, pullback = captured.pull({"f": layers.Expand()}, p, x)
        gradient, found = pullback(z)
        _, other = pullback(jnp.cos(z))
        inputs = {name: f["f"]["A"] for name, f in found.items()}
        return gradient, inputs, {name: f["f"]["G"] for name, f in other.items()}

    assert dots(empirical, p, x) == 5 * depth - 1
    assert dots(sampled, p, x) == 6 * depth - 2


def test_one_example_is_enough():
    p = zoo.mlp_params()
    _, found = statistics(zoo.mlp, p, X[:1], Z[:1])
    (x, g), _ = by_hand(p, X[:1], Z[:1])
    close(found["w1"]["reduce"]["A"], outer(hom(x)))
    close(found["w1"]["reduce"]["G"], outer(g))


def test_inputs_that_are_no_arrays_of_examples_are_marked_by_in_axes():
    def apply(p, i):
        z = zoo.mlp(p, i["x"]) * i["scale"]
        return z + 0 * jax.random.uniform(i["key"], z.shape)

    inputs = {"x": X, "scale": jnp.asarray(2.0), "key": jax.random.key(0)}
    axes = {"x": 0, "scale": None, "key": None}
    _, found = statistics(apply, zoo.mlp_params(), inputs, Z, in_axes=axes)
    close(found["w2"]["expand"]["G"], 4 * outer(Z))


def test_the_report_says_what_each_parameter_is_used_for():
    class Model:
        apply = staticmethod(zoo.mlp)
        example_inputs = X

    text = layers.report(Model, zoo.mlp_params())
    assert text == textwrap.dedent(
        """\
        parameters  block  uses  factors  sharing  memory
        -------------------------------------------------
        w1 + b1     dense  1     (4, 5)   none     328 B
        w2 + b2     dense  1     (6, 2)   none     320 B
        gradient from uses: checked"""
    )


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
jax.config.update("jax_enable_x64", True)
from natgrad import layers
import zoo
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
p, x = zoo.mlp_params(), zoo.normal(9, 8, 3)
z = zoo.normal(8, 8, 2)

def local(p, x, z):
    captured = layers.capture(zoo.mlp, p, x)
    return captured.pull({"f": layers.Expand()}, p, x)[1](z)

expected = jax.jit(local)(p, x, z)
specs = (P(), P("d"), P("d"))
for vma in (True, False):
    def body(p, x, z):
        out = local(p, x, z)
        return out if vma else jax.lax.psum(out, "d")
    found = jax.jit(jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=vma))(p, x, z)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
shard = jax.NamedSharding(mesh, P("d"))
found = jax.jit(local)(p, jax.device_put(x, shard), jax.device_put(z, shard))
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10)

inside = jax.shard_map(zoo.mlp, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
captured = layers.capture(inside, p, x)
found = jax.jit(
    lambda p, x, z: captured.pull({"f": layers.Expand()}, p, x)[1](z))(p, x, z)
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10)
print("same", captured.proven)
"""


@pytest.mark.slow
def test_sharded_factors_equal_those_of_one_device():
    """Capture inside shard_map, under a sharded jit, and around a shard_map."""
    environment = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4"}
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment | paths | {"PATH": "", "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "same checked" in done.stdout, done.stderr[-3000:]

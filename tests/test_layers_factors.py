"""Factors of each kind of use, made by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import zoo
from layer_problems import N, X, Z, close, hom, outer, statistics

from natgrad import layers
from natgrad.curvature.kfac import Weighted


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


def test_experts_gathered_by_index_have_a_block_each():
    p = {"w": zoo.normal(0, 3, 3, 2)}
    which = jnp.array([0, 2, 2, 0])
    by_index = lambda p, i: jnp.einsum("ni,nio->no", i[0], p["w"][i[1]])
    by_vmap = lambda p, i: jax.vmap(lambda x, k: x @ p["w"][k])(*i)
    weights = jnp.array([1.0, 0.5, 0.0, 2.0])
    wanted = {"f": layers.Expand(), "r": layers.Reduce()}
    wanted["w"] = Weighted(layers.Expand(), weights)
    for apply in (by_index, by_vmap):
        blocks, found = statistics(apply, p, (X, which), Z, wanted)
        assert blocks["w"].shape == (3, 3, 2)
        for name in "fr":
            close(found["w"][name]["rows"], jnp.array([2.0, 0, 2]))
        close(found["w"]["w"]["rows"], jnp.array([3.0, 0, 0.5]))
        for e in range(3):
            x, omega, z = X[which == e], weights[which == e], Z[which == e]
            close(found["w"]["f"]["A"][e], x.T @ x)
            close(found["w"]["r"]["G"][e], z.T @ z)
            close(found["w"]["w"]["A"][e], (x * omega[:, None]).T @ x)


def test_experts_gathered_by_index_take_the_memory_of_stacked_ones():
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
    inputs = shape(16, 128), shape(16, dtype=jnp.int32)
    apply = lambda p, i: jnp.einsum("ni,nio->no", i[0], p[i[1]])
    with layers.verify(False):
        (block,) = layers.capture(apply, shape(8, 128, 512), inputs).blocks
        vectors = layers.capture(
            lambda p, i: jnp.einsum("nd,nd->n", i[0], p[i[1]])[:, None],
            shape(1000, 128),
            inputs,
        )
    assert block.factor_bytes == 8 * (128**2 + 512**2) * 4
    assert vectors.blocks[0].factor_bytes == (1000 + 128**2) * 4

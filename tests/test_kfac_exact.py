"""K-FAC and EKFAC as matrices: exact where they must be.

The oracle is the dense Fisher information, from per-example gradients, which shares no
code with the taps."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kfac_problems import KEY, dense, normal
from problems import CASES, INPUTS, dense_of, mlp, ravel, relative_error

import natgrad as ng
from natgrad.curvature import (
    EKFAC,
    KFAC,
    Dense,
    Empirical,
    Exact,
    LayerDiagonal,
    Sampled,
)
from natgrad.layers import Expand, Reduce

SHARING = pytest.mark.parametrize(
    "sharing", [Expand(), Reduce()], ids=["expand", "reduce"]
)


def layerwise(matrix, params, blocks):
    """`matrix` where row and column belong to one layer, 0 elsewhere."""
    layout = ng.tree.Layout.of(params)
    owner = np.concatenate(
        [
            np.full(size, next(b for b, names in enumerate(blocks) if i in names))
            for i, size in enumerate(layout.sizes)
        ]
    )
    return matrix * (owner[:, None] == owner)


@pytest.mark.parametrize("labels", [Exact(), Sampled(2), Empirical()])
def test_one_datum_is_exact(labels, tolerance):
    model, params, x, y = CASES["categorical"].problem(examples=1)
    given = dense(KFAC(model, labels), params, x, y)
    blocks = [{0, 1}, {2, 3}]
    if labels == Exact():  # one datum, several columns: exact in the last layer only
        given, blocks = given[16:, 16:], [{2, 3}]
        expected = dense(Dense(model, labels), params, x, y)[16:, 16:]
    else:
        expected = dense(Dense(model, labels), params, x, y)
        expected = layerwise(expected, params, blocks)
    if labels == Sampled(2):  # Σ_k of products is no product, but in the last layer
        given, expected = given[16:, 16:], expected[16:, 16:]
    assert relative_error(given, expected) < tolerance("identity")


def test_a_linear_layer_is_exact(tolerance):
    apply = lambda p, x: x @ p["w"] + p["b"][None]
    params = {"w": normal(0, 3, 2), "b": normal(1, 2)}
    x = normal(2, 6, 3)
    model = ng.Model(apply, ng.families.NormalMean(0.7), example_inputs=x)
    expected = dense(Dense(model), params, x)
    for curvature in (KFAC(model), KFAC(model, sharing=Reduce()), EKFAC(model)):
        assert relative_error(dense(curvature, params, x), expected) < tolerance(
            "identity"
        )


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_under_scales_of_its_rows_is_exact(bias, tolerance):
    """Without a bias, which is not scaled, of its columns too."""
    scale = normal(3, 3, 1) * (1.0 if bias else normal(4, 1, 2))
    params = {"w": normal(0, 3, 2)} | ({"b": normal(1, 2)} if bias else {})
    apply = lambda p, x: x @ (p["w"] * scale) + p.get("b", jnp.zeros(2))[None]
    x = normal(2, 6, 3)
    model = ng.Model(apply, ng.families.NormalMean(0.7), example_inputs=x)
    expected = dense(Dense(model), params, x)
    for curvature in (KFAC(model), EKFAC(model)):
        given = dense(curvature, params, x)
        assert relative_error(given, expected) < tolerance("identity")


def test_a_mask_keeps_the_partial_traces_of_the_masked_product(tolerance):
    """And a second moment that the mask hides is none."""
    mask = jnp.array([[1.0, 0.0], [0.5, 1.0], [0.0, -2.0]])
    apply = lambda p, x: x @ jnp.where(mask == 0, 0, p * mask)
    p, x = normal(0, 3, 2), normal(2, 6, 3)
    model = ng.Model(apply, ng.families.NormalMean(0.7), example_inputs=x)
    given = np.reshape(dense(KFAC(model), p, x), (3, 2, 3, 2))
    expected = np.reshape(dense(Dense(model), p, x), (3, 2, 3, 2))
    for traced in ("ioip->op", "iojo->ij"):
        one, two = np.einsum(traced, given), np.einsum(traced, expected)
        assert relative_error(one, two) < tolerance("identity")
    diagonal = ng.curvature.LayerDiagonal(model)
    assert relative_error(
        dense(diagonal, p, x), np.diag(np.diag(expected.reshape(6, 6)))
    ) < tolerance("identity")


def test_a_merged_update_of_low_rank_has_the_blocks_of_the_fisher(tolerance):
    """Linear, with normal outputs: each block is a Kronecker product."""
    apply = lambda p, x: x @ (p["w"] + 3.0 * p["u"] @ p["v"])
    params = {"u": normal(0, 3, 2), "v": normal(1, 2, 4), "w": normal(3, 3, 4)}
    x = normal(2, 6, 3)
    model = ng.Model(apply, ng.families.NormalMean(0.7), example_inputs=x)
    expected = layerwise(dense(Dense(model), params, x), params, [{0}, {1}, {2}])
    for curvature in (KFAC(model), EKFAC(model)):
        given = dense(curvature, params, x)
        assert relative_error(given, expected) < tolerance("identity")


@pytest.mark.parametrize("layers", [2, 3])
def test_deep_linear_networks_are_exact(layers, tolerance):
    sizes = [3, 4, 2, 3][: layers + 1]
    params = [
        {"b": normal(2 * i, o), "w": normal(2 * i + 1, n, o)}
        for i, (n, o) in enumerate(itertools.pairwise(sizes))
    ]

    def apply(params, x):
        for p in params:
            x = x @ p["w"] + p["b"][None]
        return x

    x = normal(9, 6, 3)
    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x)
    expected = dense(Dense(model), params, x)
    expected = layerwise(expected, params, [{2 * i, 2 * i + 1} for i in range(layers)])
    assert relative_error(dense(KFAC(model), params, x), expected) < tolerance(
        "identity"
    )


@pytest.mark.parametrize(
    ("right", "wrong", "pooled"),
    [(Expand(), Reduce(), False), (Reduce(), Expand(), True)],
    ids=["expand", "reduce"],
)
def test_each_setting_of_sharing_is_exact_for_its_linear_networks(
    right, wrong, pooled, tolerance
):
    """One loss term a position (expand), or one a mean over positions (reduce)."""
    params = {"a": normal(0, 3, 2), "b": normal(1, 2, 2)}
    x = normal(2, 5, 4, 3)

    def apply(p, x):
        z = x @ p["a"] @ p["b"]
        return jnp.mean(z, axis=1) if pooled else z

    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x)
    expected = layerwise(dense(Dense(model), params, x), params, [{0}, {1}])
    error = lambda s: relative_error(dense(KFAC(model, sharing=s), params, x), expected)
    assert error(right) < tolerance("identity")
    assert error(wrong) > 0.05


def test_grouped_convolutions_of_one_position_are_exact():
    """A 1×1 image: each group is a linear layer, so its block is the Fisher's."""
    params = {"w": normal(0, 1, 2, 4)}

    def apply(p, x):
        out = jax.lax.conv_general_dilated(
            x,
            p["w"],
            (1,),
            "VALID",
            dimension_numbers=("NWC", "WIO", "NWC"),
            feature_group_count=2,
        )
        return out.reshape(x.shape[0], 4)

    x = normal(1, 5, 1, 4)
    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x)
    metric = jax.jit(KFAC(model).at)(params, x)
    assert metric.blocks[0].batch == (2,)
    expected = dense(Dense(model), params, x)
    assert relative_error(metric.dense(), expected) < 1e-12


@pytest.mark.parametrize("make", [KFAC, EKFAC, LayerDiagonal], ids=lambda c: c.__name__)
@pytest.mark.parametrize("labels", [Exact(), Empirical()])
def test_a_weight_of_zero_is_an_example_that_is_not_there(make, labels, tolerance):
    case = CASES["categorical"]
    model, params, x, y = case.problem()
    weights = jnp.array([1.0, 0, 1, 2, 0, 1, 1])
    rows = jnp.array([0, 2, 3, 3, 5, 6])
    weighted = ng.Model(
        lambda p, i: case.link(mlp(p, i["x"])), case.family, weights=lambda i: i["w"]
    )
    curvature, inputs = make(weighted, labels), {"x": x, "w": weights}

    @jax.jit
    def found(params):
        loss, grads, statistics = curvature.value_and_grad(params, inputs, y)
        slow = curvature.at(params, inputs, y).dense()
        return loss, grads, slow, curvature.metric(statistics, params, inputs).dense()

    @jax.jit
    def without(params):
        value, grads = jax.value_and_grad(model.loss)(params, x[rows], y[rows])
        return value, grads, make(model, labels).at(params, x[rows], y[rows]).dense()

    loss, grads, slow, fast = found(params)
    expected_loss, expected_grads, expected = without(params)
    assert abs(loss - expected_loss) < 1e-12
    assert relative_error(ravel(grads), ravel(expected_grads)) < tolerance("identity")
    for given in (slow, fast):
        assert relative_error(given, expected) < tolerance("identity")


@SHARING
def test_weights_reach_lookups_and_tied_weights(sharing, tolerance):
    def apply(p, inputs):
        h = jnp.tanh(p["table"][inputs["i"]] + p["shift"][None, None])  # [N, T, O]
        return jnp.mean(h @ p["table"].T, axis=1)

    params = {"table": normal(0, 5, 3), "shift": normal(1, 3)}
    index = jax.random.randint(KEY, (6, 4), 0, 5)
    weights = jnp.array([1.0, 0, 2, 1, 0, 1])
    rows = jnp.array([0, 2, 2, 3, 5])
    inputs = lambda rows: {"i": index[rows], "w": jnp.ones(len(rows))}
    whole = {"i": index, "w": weights}
    family = ng.families.NormalMean()
    plain = ng.Model(apply, family)
    weighted = ng.Model(apply, family, weights=lambda inputs: inputs["w"])
    given = dense_of(KFAC(weighted, sharing=sharing), params, whole)
    expected = dense_of(KFAC(plain, sharing=sharing), params, inputs(rows))
    assert relative_error(given, expected) < tolerance("identity")


def test_layers_must_be_known_before_the_first_batch():
    model, params, _, _ = CASES["categorical"].problem(example_inputs=None)
    for make in (KFAC, EKFAC):
        with pytest.raises(ValueError, match="example_inputs=x"):
            make(model).init(params)


def test_a_hand_declared_block_is_exact(tolerance):
    model, params, x, _ = CASES["categorical"].problem()
    whole = dense(Dense(model), params, x)
    size = INPUTS * 4 + 4
    for make in (KFAC, EKFAC):
        given = dense(make(model, declared={"in": ng.layers.DenseBlock()}), params, x)
        first = relative_error(given[:size, :size], whole[:size, :size])
        assert first < tolerance("identity")
        last = dense(make(model), params, x)[size:, size:]
        assert relative_error(given[size:, size:], last) < tolerance("identity")


def test_blocks_keep_their_order_with_many_layers(tolerance):
    """Eleven layers: as text '10' comes before '2'."""
    params = [normal(i, 1 + (i + 1) % 3, 1 + (i + 2) % 3) for i in range(11)]

    def apply(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    x = normal(20, 1, 2)
    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x)
    given = dense(KFAC(model, Sampled(1)), params, x)
    fisher = dense(Dense(model, Sampled(1)), params, x)
    expected = layerwise(fisher, params, [{i} for i in range(11)])
    assert relative_error(given, expected) < tolerance("identity")
    several = jax.jit(KFAC(model).at)(params, x)
    assert several.dense().shape == fisher.shape

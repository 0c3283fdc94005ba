"""K-FAC, EKFAC and the diagonal from taps, as matrices: exact where they must be.

The oracle is the dense Fisher information, from per-example gradients, which shares no
code with the taps.
"""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from problems import CASES, INPUTS, mlp, ravel, relative_error

import natgrad as ng
from natgrad.curvature import (
    EKFAC,
    KFAC,
    Dense,
    Diagonal,
    Empirical,
    Exact,
    LayerDiagonal,
    Sampled,
)
from natgrad.kronecker import Eigenbasis, FactoredTikhonov, KroneckerMetric
from natgrad.layers import Expand, Reduce

KEY = jax.random.PRNGKey(3)
LAMBDA = 0.03
SHARING = pytest.mark.parametrize(
    "sharing", [Expand(), Reduce()], ids=["expand", "reduce"]
)


def normal(seed, *shape):
    return jax.random.normal(jax.random.PRNGKey(seed), shape)


def dense(curvature, params, x, y=None):
    return jax.jit(lambda p, x: curvature.at(p, x, y, KEY).dense())(params, x)


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


# Where K-FAC is exact ---------------------------------------------------------------


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


@functools.cache
def zoo_problem(name):
    """A zoo model with normal outputs, and its captured blocks' Fisher."""
    apply, params, inputs, in_axes = zoo.ZOO[name]()
    flat = lambda p, x: (lambda z: z.reshape(z.shape[0], -1))(apply(p, x))
    model = ng.Model(
        flat, ng.families.NormalMean(), example_inputs=inputs, in_axes=in_axes
    )
    return model, params, inputs


def block_masked(metric, fisher):
    """The Fisher inside the blocks of a metric."""
    inside = np.zeros(fisher.shape, bool)
    for places in metric._places():
        for where in places:
            inside[np.ix_(where, where)] = True
    return np.where(inside, fisher, 0)


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "tied",
        "scan and remat",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "equinox conv 1d",
                "linen conv 1d",
                "tied embedding",
                "ensemble",
            )
        ),
    ],
)
def test_ekfac_is_nearer_to_the_fisher_in_every_block(name):
    """Grouped, tied and stacked blocks too, by the same labels."""
    model, params, inputs = zoo_problem(name)

    @jax.jit
    def matrices(params):
        kron = KFAC(model, Sampled(1)).at(params, inputs, key=KEY)
        eigen = EKFAC(model, Sampled(1)).at(params, inputs, key=KEY)
        fisher = Dense(model, Sampled(1)).at(params, inputs, key=KEY).dense()
        return kron, eigen.dense(), fisher

    kron, eigen, fisher = matrices(params)
    for places in kron._places():
        for where in places:
            cut = lambda matrix, where=where: np.asarray(matrix)[np.ix_(where, where)]
            target, near, far = cut(fisher), cut(eigen), cut(kron.dense())
            scale = np.linalg.norm(target)
            bound = np.linalg.norm(far - target) + 1e-12 * scale
            assert np.linalg.norm(near - target) <= bound
            assert np.trace(near) == pytest.approx(
                np.trace(target), rel=1e-10, abs=1e-12
            )
    masked = block_masked(kron, fisher)
    gain = np.linalg.norm(kron.dense() - masked) - np.linalg.norm(eigen - masked)
    assert gain > 1e-3 * np.linalg.norm(masked)


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
    metric = KFAC(model).at(params, x)
    assert metric.blocks[0].batch == (2,)
    expected = dense(Dense(model), params, x)
    assert relative_error(metric.dense(), expected) < 1e-12


def test_ekfac_is_kfac_before_its_scales_are_measured(tolerance):
    model, params, x, _ = CASES["poisson"].problem()
    kfac, ekfac = KFAC(model), EKFAC(model)
    factors = kfac.estimate(params, x)
    start = ekfac.metric(ekfac.from_factors(factors), params)
    expected = kfac.metric(factors, params).dense()
    assert relative_error(start.dense(), expected) < tolerance("identity")
    after = dense(ekfac, params, x)
    assert relative_error(after, expected) > 0.01


@pytest.mark.parametrize("labels", [Exact(), Sampled(2), Empirical()])
@pytest.mark.parametrize("name", ["categorical", "normal_mean_log_scale"])
def test_the_diagonal_from_taps_is_the_diagonal(name, labels, tolerance):
    model, params, x, y = CASES[name].problem()
    given = LayerDiagonal(model, labels).estimate(params, x, y, KEY)
    expected = Diagonal(model, labels).estimate(params, x, y, KEY)
    assert relative_error(given, expected) < tolerance("identity")


@pytest.mark.parametrize(
    "name",
    [
        "scan and remat",
        "tied",
        *(
            pytest.param(n, marks=pytest.mark.slow)
            for n in ("linen cnn", "attention", "gru by scan", "embedding", "norms")
        ),
    ],
)
def test_the_diagonal_from_taps_is_the_diagonal_of_zoo_models(name, tolerance):
    model, params, inputs = zoo_problem(name)
    given = LayerDiagonal(model, Sampled(1)).estimate(params, inputs, key=KEY)
    expected = Diagonal(model, Sampled(1)).estimate(params, inputs, key=KEY)
    assert relative_error(given, expected) < tolerance("identity")


def test_the_diagonal_from_taps_forms_no_gradient_of_an_example():
    """Compiled temporary memory stays far below N P numbers."""
    params = {"w": jnp.zeros((64, 64)), "v": jnp.zeros((64, 64))}
    x = jnp.ones((50, 64))
    model = ng.Model(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
        ng.families.NormalMean(),
        example_inputs=x,
    )
    curvature = LayerDiagonal(model, Sampled(1))
    memory = temporary(lambda p: curvature.estimate(p, x, key=KEY), params)
    assert memory < 0.5 * 8 * 50 * 2 * 64 * 64


# Weights ----------------------------------------------------------------------------


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
    given = make(weighted, labels).at(params, {"x": x, "w": weights}, y).dense()
    expected = make(model, labels).at(params, x[rows], y[rows]).dense()
    assert relative_error(given, expected) < tolerance("identity")
    loss, grads, statistics = make(weighted, labels).value_and_grad(
        params, {"x": x, "w": weights}, y
    )
    assert abs(loss - model.loss(params, x[rows], y[rows])) < 1e-12
    assert relative_error(
        ravel(grads), ravel(jax.grad(model.loss)(params, x[rows], y[rows]))
    ) < tolerance("identity")
    fast = make(weighted, labels).metric(statistics, params, {"x": x, "w": weights})
    assert relative_error(fast.dense(), expected) < tolerance("identity")


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
    given = KFAC(weighted, sharing=sharing).at(params, whole).dense()
    expected = KFAC(plain, sharing=sharing).at(params, inputs(rows)).dense()
    assert relative_error(given, expected) < tolerance("identity")


# Inverses ---------------------------------------------------------------------------


def kronecker_problem(seed=0):
    model, params, x, _ = CASES["categorical"].problem(seed=seed)
    metric = KFAC(model).at(params, x)
    layout = ng.tree.Layout.of(params)
    return metric, layout.unravel(normal(seed + 5, layout.size))


def test_every_exact_inverse_is_the_dense_solve(tolerance):
    metric, v = kronecker_problem()
    matrix = metric.dense() + LAMBDA * jnp.eye(metric.layout.size)
    expected = jnp.linalg.solve(matrix, ravel(v))
    for given in (metric.solve(v, LAMBDA), Eigenbasis()(metric, v, LAMBDA)):
        assert relative_error(ravel(given), expected) < tolerance("identity")


def test_factored_tikhonov_inverts_the_damped_factors(tolerance):
    """(A + π√λ I) ⊗ (G + √λ/π I) = F + λI + √λ (A ⊗ I/π + π I ⊗ G)."""
    metric, v = kronecker_problem()
    damped, cross = [], []
    for a, g in zip(metric.inputs, metric.outputs, strict=True):
        pi = jnp.sqrt((jnp.trace(a) / len(a)) / (jnp.trace(g) / len(g)))
        eye_a, eye_g, root = jnp.eye(len(a)), jnp.eye(len(g)), LAMBDA**0.5
        damped.append(jnp.kron(a + pi * root * eye_a, g + root / pi * eye_g))
        cross.append(root * (jnp.kron(a, eye_g) / pi + pi * jnp.kron(eye_a, g)))
    damped, cross = metric.placed(damped), metric.placed(cross)
    given = ravel(FactoredTikhonov()(metric, v, LAMBDA))
    expected = jnp.linalg.solve(damped, ravel(v))
    assert relative_error(given, expected) < tolerance("identity")
    exact = metric.dense() + LAMBDA * jnp.eye(metric.layout.size)
    assert relative_error(damped - exact, cross) < tolerance("identity")
    assert relative_error(given, ravel(metric.solve(v, LAMBDA))) > 0.05


def test_pi_makes_the_extra_damping_smallest():
    """Among all splits of λ, π minimises the trace norm of the cross terms."""
    metric, _ = kronecker_problem()
    for a, g in zip(metric.inputs, metric.outputs, strict=True):
        extra = lambda pi, a=a, g=g: (
            jnp.trace(a) * len(g) / pi + pi * len(a) * jnp.trace(g)
        )
        pi = jnp.sqrt((jnp.trace(a) / len(a)) / (jnp.trace(g) / len(g)))
        assert abs(jax.grad(extra)(pi)) < 1e-12 * extra(pi)
        assert extra(pi) < extra(1.1 * pi)


def test_inverses_are_equal_where_the_damping_is_nothing(tolerance):
    """For F regular and λ → 0 all inverses agree."""
    metric, v = kronecker_problem()
    regular = KroneckerMetric(
        metric.layout,
        metric.blocks,
        tuple(a + jnp.eye(len(a)) for a in metric.inputs),
        tuple(g + jnp.eye(len(g)) for g in metric.outputs),
    )
    exact = ravel(regular.solve(v, 1e-18))
    assert relative_error(ravel(FactoredTikhonov()(regular, v, 1e-18)), exact) < 1e-7


@pytest.mark.parametrize("solver", [Eigenbasis(), FactoredTikhonov()])
def test_zero_factors_and_zero_gradients_give_finite_steps(solver):
    metric, v = kronecker_problem()
    zero = jax.tree.map(jnp.zeros_like, metric)
    for part in ("inputs", "outputs"):
        factors = getattr(metric, part)
        dead = tuple(f.at[0].set(0).at[:, 0].set(0) for f in factors)
        cases = {part: dead}, {part: tuple(jnp.zeros_like(f) for f in factors)}
        for case in cases:
            given = solver(_with(metric, **case), v, 1e-3)
            assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(given))
    given = solver(zero, v, 1e-3)
    assert relative_error(ravel(given), ravel(v) / 1e-3) < 1e-9
    nothing = jax.tree.map(jnp.zeros_like, v)
    assert jnp.abs(ravel(solver(metric, nothing, 1e-3))).max() == 0


def _with(metric, inputs=None, outputs=None):
    return KroneckerMetric(
        metric.layout, metric.blocks, inputs or metric.inputs, outputs or metric.outputs
    )


def test_factors_of_one_size_are_decomposed_by_one_call():
    """Six equal layers: one eigh for A and one for G in the whole program."""
    params = [normal(i, 4, 4) for i in range(6)]

    def apply(params, x):
        for w in params:
            x = jnp.tanh(x @ w)
        return x

    x = normal(9, 5, 4)
    model = ng.Model(apply, ng.families.NormalMean(), example_inputs=x)
    metric = KFAC(model).at(params, x)
    text = str(jax.make_jaxpr(lambda m, v: m.solve(v, 0.1))(metric, params))
    assert text.count("= eigh[") == 1
    text = str(
        jax.make_jaxpr(lambda m, v: FactoredTikhonov()(m, v, 0.1))(metric, params)
    )
    assert text.count("= cholesky") == 1


def test_the_derivative_of_an_eigenbasis_is_finite_and_right():
    matrix = jnp.diag(jnp.array([1.0, 2.0, 2.0, 0.0, 0.0]))
    tangent = normal(0, 5, 5)
    tangent = tangent + tangent.T
    projector = lambda m: (lambda u: u[:, -2:] @ u[:, -2:].T)(ng.eigenbasis.eigh(m)[1])
    given = jax.jvp(projector, (matrix,), (tangent,))[1]
    h = 1e-5
    expected = (
        (projector(matrix + h * tangent) - projector(matrix - h * tangent)) / 2 / h
    )
    assert relative_error(given, expected) < 1e-8  # of a subspace, though 2 repeats


# One pass ---------------------------------------------------------------------------

FAST = {"xla_backend_optimization_level": 3}


def compiled(function, *args):
    return jax.jit(function).lower(*args).compile(compiler_options=FAST)


def temporary(function, *args):
    return compiled(function, *args).memory_analysis().temp_size_in_bytes


def deep(layers, width, batch):
    """(model, params, x, y): dense layers with a nonlinearity between them."""
    params = [0.1 * normal(i, width, width).astype("float32") for i in range(layers)]

    def apply(params, x):
        for i, w in enumerate(params):
            x = x @ w if i == 0 else jnp.tanh(x) @ w
        return x

    x, y = (normal(9 + i, batch, width).astype("float32") for i in range(2))
    return ng.Model(apply, ng.families.NormalMean(), example_inputs=x), params, x, y


@pytest.mark.parametrize("layers", [3, 5])
@pytest.mark.parametrize(
    ("labels", "expected"),
    [(Empirical(), lambda n: 5 * n - 1), (Sampled(1), lambda n: 6 * n - 2)],
    ids=["empirical", "sampled"],
)
def test_gradient_and_factors_take_one_pass(layers, labels, expected):
    """3L − 1 products of the gradient, 2L of the factors, L − 1 of a second pull."""
    model, params, x, y = deep(layers, 24, 48)
    curvature = KFAC(model, labels)
    program = compiled(
        lambda p, x, y: curvature.value_and_grad(p, x, y, KEY), params, x, y
    )
    assert products(program) == expected(layers)


def products(program):
    text = program.as_text()
    return text.count(" dot(") + text.count('custom_call_target="__onednn$matmul')


def test_factors_store_nothing_of_the_size_of_the_batch():
    """Temporary memory is the gradient's within 5 %, however deep the network.

    Sampled labels add a fixed number of arrays like the outputs: labels and scores.
    """
    batch, width = 8192, 16
    model, params, x, y = deep(10, width, batch)
    gradient = temporary(jax.value_and_grad(model.loss), params, x, y)

    def both(labels):
        curvature = KFAC(model, labels)
        shared = lambda p, x, y: curvature.value_and_grad(p, x, y, KEY)
        return temporary(shared, params, x, y)

    outputs = 4 * batch * width
    assert gradient > 10 * outputs
    assert both(Empirical()) < 1.05 * gradient
    assert both(Sampled(1)) < 1.05 * gradient + 5 * outputs


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
        given = dense(make(model, declared={"in": ng.layers.Exact()}), params, x)
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
    given = KFAC(model, Sampled(1)).at(params, x, key=KEY).dense()
    fisher = Dense(model, Sampled(1)).at(params, x, key=KEY).dense()
    expected = layerwise(fisher, params, [{i} for i in range(11)])
    assert relative_error(given, expected) < tolerance("identity")
    several = KFAC(model).at(params, x)
    assert several.dense().shape == fisher.shape

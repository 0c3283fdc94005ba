"""The sample-space metric is the dense Fisher: every family, label and layer."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from laws import LAWS, ordinary
from problems import CASES, dense_of, ravel, relative_error

import natgrad as ng
from natgrad.curvature import Dense, Empirical, Exact, Gram, Sampled

KEY = jax.random.PRNGKey(1)
LABELS = {"exact": Exact(), "sampled": Sampled(2), "empirical": Empirical()}
DAMPINGS = jnp.array([1.0, 1e-2, 1e-4, 1e-6, 1e-8])


@functools.partial(jax.jit, static_argnums=(0, 1))
def both(model, labels, params, x, y, dampings):
    """F of both kinds, the rows of B, and solutions for every vector and damping."""
    dense = Dense(model, labels).at(params, x, y, KEY)
    gram = Gram(model, labels).at(params, x, y, KEY)
    # The scores span the gradient, and not all of the other vector.
    gradient = ravel(jax.grad(model.loss)(params, x, y))
    outside = 0.1 * jnp.cos(jnp.arange(gradient.size, dtype=gradient.dtype))
    vectors = jnp.stack([gradient, gradient + outside])
    solved = lambda v, damping: gram.solution(gram.layout.unravel(v), damping)
    each = jax.vmap(jax.vmap(solved, (None, 0)), (0, None))(vectors, dampings)
    return {
        "dense": dense.dense(),
        "gram": gram.dense(),
        "rows": gram.jacobian.explicit(),
        "mv": ravel(gram.mv(params)),
        "diagonal": ravel(gram.diagonal()),
        "logdet": gram.logdet(0.1),
        "vectors": vectors,
        "solutions": jax.vmap(jax.vmap(ravel))(each.value),
        "fallback": each.fallback,
    }


def by_singular_values(rows, v, damping):
    """(Bᵀ B + λI)⁻¹ v in float64, B's null space being one to the last digit."""
    _, singular, vectors = np.linalg.svd(np.asarray(rows, "float64"))
    values = np.zeros(len(vectors))
    values[: len(singular)] = singular**2
    return vectors.T @ ((vectors @ np.asarray(v, "float64")) / (values + damping))


# A law with more columns than parameters, and two with fewer. How B is solved with does
# not depend on law or label: B itself is compared for every one below.
PAIRS = [("categorical", "exact"), ("normal_mean_log_scale", "sampled")]
PAIRS += [("gamma", "exact")]


@pytest.mark.parametrize(("family", "labels"), PAIRS)
def test_products_and_solutions_are_those_of_the_dense_fisher(family, labels):
    model, params, x, y = CASES[family].problem()
    given = jax.device_get(both(model, LABELS[labels], params, x, y, DAMPINGS))
    matrix = given["dense"]
    assert relative_error(given["gram"], matrix) < 1e-10
    assert relative_error(given["mv"], matrix @ ravel(params)) < 1e-10
    assert relative_error(given["diagonal"], np.diag(matrix)) < 1e-10
    singular = np.linalg.svd(given["rows"], compute_uv=False)
    logdet = np.sum(np.log(singular**2 + 0.1))
    logdet += (len(matrix) - len(singular)) * np.log(0.1)
    assert relative_error(given["logdet"], logdet) < 1e-8
    assert not given["fallback"].any()
    largest = np.linalg.norm(matrix, 2)
    for v, solutions in zip(given["vectors"], given["solutions"], strict=True):
        for damping, x_given in zip(np.asarray(DAMPINGS), solutions, strict=True):
            expected = by_singular_values(given["rows"], v, damping)
            # What rounding leaves of any algorithm: the condition number's share.
            limit = max(1e-9, 4e-16 * largest / damping)
            assert relative_error(x_given, expected) < limit


# Some labels for each family, all of them for two.
LABELED = dict(zip(CASES, ([label] for label in itertools.cycle(LABELS)), strict=False))
LABELED |= dict.fromkeys(["categorical", "normal_mean_log_scale"], LABELS)


@pytest.mark.parametrize("family", LABELED)
def test_it_equals_the_dense_fisher_for_every_family(family):
    model, params, x, y = CASES[family].problem()
    labels = [LABELS[name] for name in LABELED[family]]
    assert_both_agree(model, labels, params, x, y)


def assert_both_agree(model, labels, params, x, y=None):
    """B gives the matrix of `Dense`, and so do its products."""

    @jax.jit
    def found(params):
        metrics = [
            [form(model, each).at(params, x, y, KEY) for form in (Gram, Dense)]
            for each in labels
        ]
        return [
            (gram.dense(), ravel(gram.mv(params)), dense.dense())
            for gram, dense in metrics
        ]

    for given, product, matrix in found(params):
        assert relative_error(given, matrix) < 1e-10
        assert relative_error(product, np.asarray(matrix) @ ravel(params)) < 1e-10


# Scores of drawn labels as well: these, and all families above.
DRAWN = {"beta", "multivariate_normal"}
OTHER_LAWS = [n for n in LAWS if n not in CASES and not n.startswith("student")]


@pytest.mark.parametrize("name", OTHER_LAWS)
def test_it_equals_the_dense_fisher_for_every_other_law(name):
    """Near points of each domain, which shrinking every coordinate does not leave."""
    points = ordinary(name)
    width = points[0].size

    def apply(params, inputs):
        scale = 1 - 0.01 * jax.nn.sigmoid(inputs["x"] @ params["w"] + params["b"][None])
        return inputs["point"] * scale.reshape(inputs["point"].shape)

    params = {"w": np.cos(np.arange(3.0 * width)).reshape(3, -1), "b": np.ones(width)}
    x = np.sin(np.arange(3.0 * len(points))).reshape(-1, 3)
    model = ng.Model(apply, LAWS[name].family)
    labels = [Exact(), Sampled(1)] if name in DRAWN else [Exact()]
    assert_both_agree(model, labels, params, {"x": x, "point": points})


def test_float32_steps_are_accurate_where_a_dense_solve_is_not():
    """v has a part that no score spans, which λ = 1e-6 magnifies a million times."""
    model, params, x, y = CASES["categorical"].problem("float32")
    with jax.enable_x64(False):
        given = both(model, Sampled(2), params, x, y, DAMPINGS[:4].astype("float32"))
    v, solutions = given["vectors"][1], np.asarray(given["solutions"][1])
    assert solutions.dtype == "float32"
    for damping, x_given in zip(np.asarray(DAMPINGS[:4]), solutions, strict=True):
        expected = by_singular_values(given["rows"], v, float(damping))
        assert relative_error(x_given, expected) < 1e-4


def test_what_it_says_of_its_residual_is_true():
    model, params, x, y = CASES["categorical"].problem()

    @jax.jit
    def solved(params):
        metric, gradient = Gram(model).at(params, x), jax.grad(model.loss)(params, x, y)
        found = metric.solution(gradient, 1e-3)
        vectors = gradient, found.value, metric.mv(found.value)
        return [ravel(each) for each in vectors], found.remainder

    (gradient, value, product), remainder = jax.device_get(solved(params))
    rest = gradient - product - 1e-3 * value
    size = np.linalg.norm(gradient)
    assert abs(remainder.norm - np.linalg.norm(rest)) < 1e-12 * size
    # ⟨x, F x⟩ = ⟨x, v⟩ − λ |x|² − ⟨x, ρ⟩ is what the step's health is made of.
    curved = value @ gradient - 1e-3 * value @ value - remainder.inner
    assert relative_error(curved, value @ product) < 1e-12


def test_a_singular_fisher_without_damping_gives_the_least_norm_step():
    model, params, x, y = CASES["categorical"].problem()
    gradient = jax.grad(model.loss)(params, x, y)
    matrix = dense_of(Dense(model), params, x)
    found = jax.jit(lambda g: Gram(model).at(params, x).solution(g, 0.0))(gradient)
    expected = np.linalg.pinv(matrix, rcond=1e-11) @ ravel(gradient)
    assert found.fallback
    assert relative_error(ravel(found.value), expected) < 1e-8


def test_weights_and_masks_count_as_in_the_dense_fisher():
    weights = lambda inputs: jnp.abs(inputs[:, 0]) * (inputs[:, 1] > -0.5)
    model, params, x, y = CASES["categorical"].problem(weights=weights)
    assert_both_agree(model, LABELS.values(), params, x, y)


def test_rows_are_written_out_where_layers_are_not_understood(monkeypatch):
    """The sine of a weight has no rows; the metric is the same."""
    monkeypatch.setattr(ng.layers.declared, "EXACT_UP_TO", 0)  # as if it were large
    _, params, x, y = CASES["categorical"].problem()
    apply = lambda p, x: (
        jnp.tanh(x @ jnp.sin(0.1 * p["in"]["w"] @ p["in"]["w"].T))
        @ p["in"]["w"]
        @ p["out"]["w"]
    )
    model = ng.Model(apply, ng.families.Categorical(), chunk_size=3)
    with pytest.raises(ValueError, match="not understood"):
        ng.layers.capture(apply, params, x)
    labels = Exact(), Empirical()
    for each in labels:
        metric = jax.eval_shape(Gram(model, each).at, params, x, y, KEY)
        assert metric.jacobian.blocks is None
    assert_both_agree(model, labels, params, x, y)


# Layers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in zoo.ZOO if name not in zoo.AGAIN])
def test_it_equals_per_example_gradients_for_every_layer(name):
    """Squares of outputs as likelihood: F = Σ_n,c J_nc J_ncᵀ by a plain Jacobian.

    What a solve is made of: B written out, B v, Bᵀ u and B Bᵀ.
    """
    apply, params, inputs, in_axes = zoo.ZOO[name]()

    def flat(p, x):
        z = apply(p, x)
        return z.reshape((z.shape[0], -1))

    model = ng.Model(flat, ng.families.NormalMean(1.0), in_axes=in_axes)
    layout = ng.tree.Layout.of(params)
    v = np.cos(np.arange(layout.size, dtype=layout.dtype))

    @jax.jit
    def found(params, v):
        outputs = lambda vector: flat(layout.unravel(vector), inputs)
        jacobian = jax.jacrev(outputs)(layout.ravel(params))
        metric, tree = Gram(model).at(params, inputs), layout.unravel(v)
        b = metric.jacobian
        return {
            "plain": jacobian.reshape((-1, layout.size)) / np.sqrt(zoo.N),
            "rows": b.explicit(),
            "push": b.push(tree),
            "mv": ravel(metric.mv(tree)),
            "gram": b.gram(),
            "diagonal": ravel(metric.diagonal()),
        }

    given = jax.device_get(found(params, v))
    matrix, rows = given["plain"].T @ given["plain"], given["rows"]
    assert relative_error(rows.T @ rows, matrix) < 1e-10
    assert relative_error(given["push"], rows @ v) < 1e-10
    assert relative_error(given["mv"], matrix @ v) < 1e-10
    assert relative_error(given["gram"], rows @ rows.T) < 1e-10
    assert relative_error(given["diagonal"], np.diag(matrix)) < 1e-10


# Steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", LABELS)
def test_twenty_steps_are_those_of_the_dense_fisher(labels):
    model, params, x, y = CASES["categorical"].problem()

    def path(curvature, penalty):
        tx = optax.chain(
            ng.scale_by_curvature(curvature, damping=1e-2), optax.scale(-0.1)
        )
        loss = lambda p: model.loss(p, x, y) + penalty * optax.tree.norm(p) ** 2

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(
                jax.grad(loss)(params), state, params, inputs=x, targets=y
            )
            params = optax.apply_updates(params, updates)
            return (params, state), ravel(params)

        return jax.lax.scan(step, (params, tx.init(params)), None, 20)[1]

    run = jax.jit(
        lambda penalty: [path(c(model, LABELS[labels]), penalty) for c in (Gram, Dense)]
    )
    for penalty in (0.0, 1e-2):
        gram, dense = run(penalty)
        assert relative_error(gram, dense) < 1e-9


@pytest.mark.slow
def test_sixteen_models_over_fifty_steps_compile_once_and_equal_a_loop():
    model = CASES["categorical"].model()
    tx = ng.gram(0.2, model, damping=1e-2, labels=Exact())
    traces = []

    def train(params, x, y):
        def step(carry, _):
            traces.append(1)
            params, state = carry
            gradient = jax.grad(model.loss)(params, x, y)
            updates, state = tx.update(gradient, state, params, inputs=x)
            return (optax.apply_updates(params, updates), state), None

        return ravel(jax.lax.scan(step, (params, tx.init(params)), None, 50)[0][0])

    problems = [CASES["categorical"].problem(seed=s, examples=5)[1:] for s in range(16)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *problems)
    together = jax.jit(jax.vmap(train))(*stacked)
    assert len(traces) <= 2  # scan traces its body for shapes, and then for good
    alone = jax.jit(train)
    for given, problem in zip(together, problems, strict=True):
        assert relative_error(given, alone(*problem)) < 1e-9

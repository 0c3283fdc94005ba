"""Every registry entry gives a metric: symmetric, positive, consistent with itself."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input import refused, refuses
from metric_kinds import METRICS
from problems import CASES, ravel, relative_error

import natgrad as ng

KEY = jax.random.PRNGKey(3)
CASE = CASES["categorical"]
DAMPING = 0.03
# The metrics of other labels are those of "dense".
NAMES = [name for name in ng.CURVATURES if name not in ("sampled", "empirical")]


def metric_at(name, params, x, y, model=None):
    return ng.CURVATURES[name](model or CASE.model()).at(params, x, y, KEY)


def vector(params, seed=1):
    """A random tree shaped like params."""
    layout = ng.tree.Layout.of(params)
    return layout.unravel(
        jax.random.normal(jax.random.PRNGKey(seed), (layout.size,), layout.dtype)
    )


def laws(name, params, x, y, v):
    """All that a metric can say, as one dictionary of arrays."""
    metric = metric_at(name, params, x, y)
    return {
        "dense": metric.dense(),
        "mv": ravel(metric.mv(v)).astype(metric.layout.dtype),
        "solve": ravel(metric.solve(v, DAMPING)).astype(metric.layout.dtype),
        "diagonal": ravel(metric.diagonal()),
        "trace": metric.trace(),
        "logdet": metric.logdet(DAMPING),
        "norm": metric.norm(v),
    }


jitted_laws = jax.jit(laws, static_argnums=0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_a_metric_agrees_with_its_dense_matrix(name, dtype, tolerance):
    _, params, x, y = CASE.problem(dtype)
    v = vector(params)
    given = jitted_laws(name, params, x, y, v)
    assert {str(leaf.dtype) for leaf in given.values()} == {dtype}
    dense = np.asarray(given["dense"], "float64")
    flat = np.asarray(ravel(v), "float64")
    damped = dense + DAMPING * np.eye(len(dense))
    expected = {
        "dense": dense.T,
        "mv": dense @ flat,
        "solve": np.linalg.solve(damped, flat),
        "diagonal": np.diag(dense),
        "trace": np.trace(dense),
        "logdet": np.linalg.slogdet(damped)[1],
        "norm": np.sqrt(flat @ dense @ flat),
    }
    iterative = {"solve"} if name == "matrix_free" else set()
    for law, value in expected.items():
        purpose = "iterative" if law in iterative else "identity"
        if law == "solve" and dtype == "float32":
            purpose = "solve"
        assert relative_error(given[law], value) < tolerance(purpose, dtype), law
    assert np.linalg.eigvalsh(dense).min() > -1e-6 * np.linalg.norm(dense)


@pytest.mark.parametrize("name", NAMES)
def test_jit_changes_nothing(name, tolerance):
    _, params, x, y = CASE.problem()
    v = vector(params)
    eager = metric_at(name, params, x, y).mv(v)
    jitted = jitted_laws(name, params, x, y, v)["mv"]
    assert relative_error(ravel(eager), jitted) < tolerance("identity")


def test_everything_that_a_metric_says_can_be_asked_outside_of_jit(tolerance):
    _, params, x, y = CASE.problem()
    v = vector(params)
    eager = laws("diagonal", params, x, y, v)
    for law, value in jitted_laws("diagonal", params, x, y, v).items():
        assert relative_error(eager[law], value) < tolerance("identity"), law


@pytest.mark.parametrize("name", NAMES)
def test_vmap_over_models_and_vectors_equals_loops(name, tolerance):
    problems = [CASE.problem(seed=seed)[1:] for seed in range(3)]
    vectors = [vector(problems[0][0], seed) for seed in range(2)]
    models, many = (
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
        for each in (problems, vectors)
    )
    each = jax.vmap(functools.partial(laws, name), (None, None, None, 0))
    mapped = jax.device_get(jax.jit(jax.vmap(each, (0, 0, 0, None)))(*models, many))
    for i, j in itertools.product(range(3), range(2)):
        expected = jitted_laws(name, *problems[i], vectors[j])
        for law, value in expected.items():
            purpose = "iterative" if law == "solve" else "identity"
            error = relative_error(mapped[law][i, j], value)
            assert error < tolerance(purpose), (law, i, j)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_parameters_keep_float32_statistics(name):
    _, params, x, y = CASE.problem("float32")
    half = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    x = x.astype(jnp.bfloat16)
    curvature = ng.CURVATURES[name](CASE.model())
    statistics = jax.eval_shape(curvature.estimate, half, x, y, KEY)
    floating = [
        leaf
        for leaf in jax.tree.leaves(statistics)
        if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    assert floating or curvature.requires_batch
    assert {str(leaf.dtype) for leaf in floating} <= {"float32"}
    given = jitted_laws(name, half, x, y, vector(half))
    full = jitted_laws(name, params, x.astype(jnp.float32), y, vector(params))
    assert relative_error(given["dense"], full["dense"]) < 0.1
    assert all(jnp.isfinite(value).all() for value in given.values())
    solve = lambda p, x, y, v: metric_at(name, p, x, y).solve(v, 0.1)
    solution = jax.eval_shape(solve, half, x, y, vector(half))
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(solution)} == {"bfloat16"}


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_passes_through_jit_as_a_pytree(name, tolerance):
    model, params, x, y = CASE.problem()
    v = vector(params)
    metric = jax.jit(lambda *batch: metric_at(name, *batch, model))(params, x, y)
    outside = jax.jit(lambda metric, v: metric.mv(v))(metric, v)
    expected = jitted_laws(name, params, x, y, v)["mv"]
    assert relative_error(ravel(outside), expected) < tolerance("identity")


def others(v):
    """Trees that are not shaped like v, though some have as many entries, or leaves."""
    leaves = jax.tree.leaves(v)
    return [
        {f"leaf {i}": leaf for i, leaf in enumerate(leaves)},
        jax.tree.map(jnp.transpose, v),
        jax.tree.map(jnp.ravel, v),
        jax.tree.map(jnp.sum, v),
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf], -1), v),
        ravel(v),
    ]


@pytest.mark.parametrize("name", METRICS)
def test_a_vector_that_is_not_like_the_parameters_is_refused(name):
    def refusals():
        metric = METRICS[name]()
        layout = metric.layout
        takers = [
            metric.mv,
            metric.norm,
            metric.solve,
            lambda v: metric.solve(v, DAMPING),
            lambda v: metric.solve(v, ng.Relative(DAMPING)),
            lambda v: metric.function(jnp.exp, v),
            lambda v: metric.decomposed().function(jnp.exp, v),
            lambda v: ng.solvers.cg(metric, v, DAMPING),
            lambda v: ng.solvers.cholesky(metric, v, DAMPING),
        ]
        expected = str(jax.tree.unflatten(layout.treedef, layout.shapes))
        for v in others(layout.split(jnp.ones(layout.size))):
            got = str(jax.tree.map(jnp.shape, v))
            for taker in takers:
                with refuses("shaped like the parameters", expected, got):
                    taker(v)

    jax.eval_shape(refusals)


@pytest.mark.parametrize("name", METRICS)
def test_dampings_that_cannot_be_are_refused(name):
    def refusals():
        metric, key = METRICS[name](), jax.random.PRNGKey(0)
        v = metric.layout.split(jnp.ones(metric.layout.size))
        takers = [
            lambda damping: metric.solve(v, damping),
            lambda damping: metric.function(jnp.exp, v, damping),
            lambda damping: metric.trace_of(jnp.exp, damping),
            lambda damping: metric.diagonal_of(jnp.exp, damping),
            lambda damping: metric.sample(key, damping),
            metric.inverse_diagonal,
            metric.effective_dimension,
            metric.logdet,
        ]
        for taker in takers:
            for damping in -1e-3, jnp.nan, jnp.inf, jnp.ones(2), ng.Relative(-1e-3):
                with refuses("damping must be", "at least 0"):
                    taker(damping)

    jax.eval_shape(refusals)


def test_multiples_sums_and_probes_that_cannot_be_are_refused():
    _, params, x, y = CASE.problem()
    metric = metric_at("diagonal", params, x, y)
    # Outside of jit these are programs, in which a number cannot be looked at.
    for damping in -1.0, jnp.array(jnp.nan):
        with refuses("damping must be"):
            metric.solve(params, damping)
        with refuses("damping must be"):
            metric.logdet(damping)
    for scale in -1.0, 0.0, jnp.nan, jnp.ones(2):
        with refuses("multiple of a metric"):
            scale * metric
    with pytest.raises(TypeError, match="unsupported operand"):
        metric + 1.0
    for few in 1, 0, 2.0:
        with refuses("num_probes must be an integer >= 2", str(few)):
            metric.estimate_of_trace(jnp.log, KEY, few)
        with refuses("num_probes"):
            metric.estimate_of_diagonal(jnp.log, KEY, few)


@pytest.mark.parametrize("more", [-1, 1])
def test_a_vector_of_another_length_is_refused(more):
    layout = ng.tree.Layout.of(CASE.problem()[1])
    given, expected = jnp.ones(layout.size + more), f"({layout.size},)"
    refused(lambda: layout.split(given), expected, f"{given.shape}")
    refused(lambda: layout.unravel(given), expected, f"{given.shape}")

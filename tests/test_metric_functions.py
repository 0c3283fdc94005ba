"""f(F) of every kind of metric: against numpy's eigenvalues of its dense matrix."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_kinds import KEY, METRICS, normal, of_curvature, of_table
from problems import ravel, relative_error
from vmc_steps import DAMPING, filters

import natgrad as ng
from natgrad.metrics import DenseMetric, DiagonalMetric


def f(s, damping=DAMPING):
    return jnp.exp(-s) / (s + damping)


@functools.partial(jax.jit, static_argnums=0)
def said(name, damping):
    """All that a metric says of functions of it."""
    metric = METRICS[name]()
    layout = metric.layout
    v = layout.unravel(jnp.cos(jnp.arange(layout.size) ** 2.0))
    closed = lambda s: f(s, damping)
    return {
        "dense": metric.dense(),
        "v": ravel(v),
        "function": ravel(metric.function(closed, v)),
        "solve": ravel(metric.function(lambda s: 1 / (s + damping), v)),
        "solved": ravel(metric.solve(v, damping)),
        "trace": metric.trace_of(closed),
        "diagonal": ravel(metric.diagonal_of(closed)),
        "inverse": ravel(metric.inverse_diagonal(damping)),
        "dimension": metric.effective_dimension(damping),
        "logdet": metric.logdet(damping),
        "largest": metric.largest_eigenvalue(),
        **{
            name: ravel(solver(metric, v, damping))
            for name, (solver, _) in filters(0.0).items()
        },
    }


@pytest.mark.parametrize("name", METRICS)
def test_functions_are_those_of_the_eigenvalues(name):
    given = said(name, jnp.asarray(DAMPING))
    v = given["v"]
    values, vectors = np.linalg.eigh(given["dense"])
    values = np.maximum(values, 0)
    of = lambda of_values: vectors * np.asarray(of_values) @ vectors.T
    inverse = of(1 / (values + DAMPING))
    expected = {
        "function": of(f(values)) @ v,
        "solve": inverse @ v,
        "solved": inverse @ v,
        "trace": np.sum(f(values)),
        "diagonal": np.diag(of(f(values))),
        "inverse": np.diag(inverse),
        "dimension": np.sum(values / (values + DAMPING)),
        "logdet": np.sum(np.log(values + DAMPING)),
        "largest": values[-1],
    }
    for rule, (_, weights) in filters(values[-1]).items():
        expected[rule] = of(weights(values)) @ v
    for law, value in expected.items():
        assert relative_error(given[law], value) < 1e-10, law


def test_sums_and_multiples_are_those_of_the_matrices():
    @jax.jit
    def run():
        kfac, other = of_curvature("kfac"), of_curvature("matrix_free")
        total = 3 * kfac + other * 0.5 + kfac
        v = total.layout.unravel(jnp.cos(jnp.arange(total.layout.size) ** 2.0))
        parts = kfac.dense(), other.dense(), total.dense()
        said = total.mv(v), total.solve(v, DAMPING), total.diagonal(), v
        multiple = (3 * kfac).function(f, v), (3 * kfac).diagonal_of(f)
        bounded = [m.solve(v, ng.ConditionNumber(1e3)) for m in (3 * kfac, kfac)]
        said = [ravel(tree) for tree in (*said, *multiple, *bounded)]
        return parts, said, (total.trace(), (3 * kfac).trace_of(f))

    (kfac, other, total), said, (trace, trace_of_multiple) = run()
    product, solution, diagonal, v, *multiples, bounded, bounded_of_one = said
    of_multiple, diagonal_of_multiple = multiples
    assert relative_error(3 * bounded, bounded_of_one) < 1e-10
    values, vectors = np.linalg.eigh(kfac)
    whole = vectors * np.asarray(f(3 * np.maximum(values, 0))) @ vectors.T
    assert relative_error(of_multiple, whole @ v) < 1e-10
    assert relative_error(diagonal_of_multiple, np.diag(whole)) < 1e-10
    assert relative_error(trace_of_multiple, np.trace(whole)) < 1e-10
    matrix = 4 * np.asarray(kfac) + 0.5 * np.asarray(other)
    assert relative_error(total, matrix) < 1e-12
    assert relative_error(product, matrix @ v) < 1e-12
    assert relative_error(diagonal, np.diag(matrix)) < 1e-12
    assert relative_error(trace, np.trace(matrix)) < 1e-12
    damped = matrix + DAMPING * np.eye(len(matrix))
    assert relative_error(solution, np.linalg.solve(damped, v)) < 1e-10
    with pytest.raises(ValueError, match="the same parameters"):
        of_curvature("diagonal") + of_table("diagonal")


# Draws and estimates ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["gram", "matrix_free", "a multiple"])
def test_samples_have_the_inverse_as_their_covariance(name):
    """Whitened draws against the identity, entry by entry in standard errors."""
    count = 2000

    @jax.jit
    def run(keys):
        metric = METRICS[name]()
        draws = jax.vmap(lambda key: ravel(metric.sample(key, DAMPING)))(keys)
        return draws, metric.dense()

    draws, matrix = run(jax.random.split(KEY, count))
    matrix = np.asarray(matrix) + DAMPING * np.eye(len(matrix))
    white = np.asarray(draws) @ np.linalg.cholesky(matrix)
    scatter = white.T @ white / count - np.eye(len(matrix))
    scores = scatter * np.sqrt(count / (1 + np.eye(len(matrix))))
    assert np.abs(scores).max() < 5
    assert 0.9 < np.mean(scores**2) < 1.1
    assert np.abs(white.mean(0) * np.sqrt(count)).max() < 4.5


def test_standard_errors_of_estimates_are_true():
    size, probes, repeats = 40, 12, 150
    layout = ng.tree.Layout.of({"x": jnp.zeros(size, "float64")})
    root = normal(0, size, size) / 6
    matrix = root @ root.T

    @jax.jit
    def run(keys):
        metric = DenseMetric(layout, matrix) + DiagonalMetric(layout, root[0] ** 2)
        trace = lambda key: metric.estimate_of_trace(f, key, probes)
        diagonal = lambda key: metric.estimate_of_diagonal(f, key, probes)
        exact = metric.estimate_of_trace(f, keys[0], size)
        return jax.vmap(trace)(keys), jax.vmap(diagonal)(keys), exact

    trace, diagonal, exact = run(jax.random.split(KEY, repeats))
    values, vectors = np.linalg.eigh(np.asarray(matrix) + np.diag(root[0] ** 2))
    truth = vectors * np.asarray(f(values)) @ vectors.T
    assert relative_error(exact.value, np.trace(truth)) < 1e-10
    assert exact.standard_error == 0
    for given, expected in (
        (trace, np.trace(truth)),
        (diagonal, np.diag(truth)),
    ):
        value, error = map(np.asarray, jax.tree.leaves(given))
        scores = (value - expected) / error
        # Student's law with 11 degrees of freedom has variance 11/9.
        assert 0.8 < np.mean(scores**2) * 9 / 11 < 1.25
        assert np.abs(np.mean(scores)) < 4 / np.sqrt(repeats)


def test_the_standard_error_of_an_operators_log_determinant_is_true():
    """Above 32 parameters `logdet` is the estimate with a fixed key."""
    size, repeats = 36, 120
    x = normal(0, 20, size - 1)
    model = ng.Model(
        lambda p, x: x @ p["w"] + p["b"][None],
        ng.families.NormalMean(),
        example_inputs=x[:1],
    )
    params = {"w": jnp.zeros((size - 1, 1)), "b": jnp.zeros(1)}
    damping = {"w": 0.5, "b": 0.1}

    @jax.jit
    def run(keys):
        metric = ng.curvature.MatrixFree(model).at(params, x)
        estimate = lambda key: metric.estimate_of_trace(jnp.log, key, damping=damping)
        fixed = estimate(jax.random.PRNGKey(0))
        return jax.vmap(estimate)(keys), fixed, metric.logdet(damping)

    given, fixed, logdet = run(jax.random.split(KEY, repeats))
    rows = np.concatenate([np.ones((20, 1)), x], axis=1)  # b, then w
    matrix = rows.T @ rows / 20 + np.diag([0.1] + [0.5] * (size - 1))
    scores = (given.value - np.linalg.slogdet(matrix)[1]) / given.standard_error
    # Student's law with 31 degrees of freedom has variance 31/29.
    assert 0.7 < np.mean(scores**2) * 29 / 31 < 1.4
    assert np.abs(np.mean(scores)) < 4 / np.sqrt(repeats)
    assert np.all(given.standard_error > 0)
    assert logdet == fixed.value


def test_float32_at_the_width_of_images():
    """One layer of 784 inputs, whose A of 64 examples is singular."""
    x = jax.random.uniform(KEY, (64, 784), "float32")
    params = {"w": jnp.zeros((784, 10), "float32"), "b": jnp.zeros(10, "float32")}
    model = ng.Model(
        lambda params, x: x @ params["w"] + params["b"][None],
        ng.families.Categorical(),
        example_inputs=x[:1],
    )

    @jax.jit
    def run(params, x, v):
        metric = ng.curvature.KFAC(model).at(params, x)
        closed = lambda s: (s + 1e-3) ** -0.5
        said = metric.function(closed, v), metric.diagonal_of(closed)
        return metric.inputs[0], metric.outputs[0], said, metric.trace_of(closed)

    v = jax.tree.map(lambda leaf: jax.random.normal(KEY, leaf.shape), params)
    a, g, (product, diagonal), trace = run(params, x, v)
    (a, left), (g, right) = (np.linalg.eigh(np.asarray(m, "float64")) for m in (a, g))
    values = (np.maximum(a, 0)[:, None] * np.maximum(g, 0)[None] + 1e-3) ** -0.5
    matrix = np.concatenate([v["w"], v["b"][None]]).astype("float64")
    inner = values * (left.T @ matrix @ right)
    stacked = lambda tree: np.concatenate([tree["w"], tree["b"][None]])
    assert relative_error(stacked(product), left @ inner @ right.T) < 1e-3
    assert relative_error(stacked(diagonal), left**2 @ values @ right.T**2) < 1e-3
    assert relative_error(trace, values.sum()) < 1e-3

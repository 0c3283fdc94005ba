"""f(F) of every kind of metric: against numpy's eigenvalues of its dense matrix."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads
from problems import CASES, ravel, relative_error
from vmc_steps import DAMPING, filters

import natgrad as ng
from natgrad.control_flow import lifted
from natgrad.metrics import DenseMetric, DiagonalMetric
from natgrad.solvers import matrix_functions
from natgrad.solvers.chains import Chain, contraction
from natgrad.solvers.lanczos import _evaluate, function_of_operator

KEY = jax.random.PRNGKey(3)
CASE = CASES["categorical"]


def looked_up(params, ids):
    """A table, a dense layer, and a parameter that nothing reads."""
    return jnp.tanh(params["table"][ids]) @ params["w"]


TABLE = {
    "table": jax.random.normal(KEY, (5, 2), "float64"),
    "w": jax.random.normal(jax.random.PRNGKey(1), (2, 3), "float64"),
    "idle": jnp.ones(2, "float64"),
}
IDS = jnp.array([0, 1, 1, 4, 2, 0])


def of_curvature(name):
    with jax.ensure_compile_time_eval():
        model, params, x, y = CASE.problem()
    return ng.CURVATURES[name](model).at(params, x, y, KEY)


def of_table(name):
    model = ng.Model(looked_up, ng.families.Categorical(), example_inputs=IDS)
    return ng.CURVATURES[name](model).at(TABLE, IDS, IDS % 3, KEY)


def first_of_each_kind():
    """One curvature of the registry for each class of metrics."""
    kinds = {}
    for name in ng.CURVATURES:
        metric = jax.eval_shape(functools.partial(of_curvature, name))
        kinds.setdefault(type(metric), name)
    return list(kinds.values())


METRICS = {
    name: functools.partial(of_curvature, name) for name in first_of_each_kind()
} | {
    "kfac of a table": functools.partial(of_table, "kfac"),
    "a sum": lambda: of_curvature("kfac") * 0.5 + of_curvature("diagonal"),
}


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
        said = [ravel(tree) for tree in (*said, *multiple)]
        return parts, said, (total.trace(), (3 * kfac).trace_of(f))

    (kfac, other, total), said, (trace, trace_of_multiple) = run()
    product, solution, diagonal, v, of_multiple, diagonal_of_multiple = said
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


# Derivatives ------------------------------------------------------------------------

# Distinct; exactly and nearly repeated; singular.
SPECTRA = jnp.array(
    [
        [0.3, 1.0, 2.0, 4.0, 0.7, 5.0],
        [1.0, 1.0, 1.0, 2.0, 2.0, 3.0],
        [1.0, 1 + 1e-12, 1 + 1e-9, 1 + 1e-6, 1 + 1e-3, 1.1],
        [0.0, 0.0, 0.0, 1.0, 1.0, 1e-9],
    ]
)
LAYOUT = ng.tree.Layout.of({"x": jnp.zeros(6, "float64")})


def normal(seed, *shape):
    return jax.random.normal(jax.random.PRNGKey(seed), shape, "float64")


def backwards(function, arguments, directions):
    """Value, gradient, and the gradient of a directional derivative."""
    every = tuple(range(len(arguments)))

    def along(*arguments):
        slopes = jax.grad(function, every)(*arguments)
        return ng.tree.inner(slopes, directions)

    return (
        jax.value_and_grad(function, every)(*arguments),
        jax.grad(along, every)(*arguments),
    )


def errors(given, expected):
    pairs = zip(jax.tree.leaves(given), jax.tree.leaves(expected), strict=True)
    return max(relative_error(*pair) for pair in pairs)


def rational(damping):
    return lambda s: s**3 + 1 / (s + damping)


def by_solving(matrix, v, damping):
    """The same function without eigenvalues."""
    cubed = matrix @ (matrix @ (matrix @ v))
    return cubed + jnp.linalg.solve(matrix + damping * jnp.eye(len(v)), v)


def test_second_derivatives_of_a_matrix_are_exact_where_eigenvalues_repeat():
    basis = jnp.linalg.qr(normal(0, 6, 6))[0]
    v, w = normal(1, 6), normal(2, 6)
    directions = (normal(3, 6, 6), jnp.asarray(0.3))

    def by_function(matrix, damping):
        metric = DenseMetric(LAYOUT, matrix)
        return w @ metric.function(rational(damping), {"x": v})["x"]

    def oracle(matrix, damping):
        return w @ by_solving((matrix + matrix.T) / 2, v, damping)

    @jax.jit
    @jax.vmap
    def run(spectrum):
        arguments = basis * spectrum[None] @ basis.T, jnp.asarray(0.4)
        return [
            backwards(each, arguments, directions) for each in (by_function, oracle)
        ]

    assert errors(*run(SPECTRA)) < 1e-9


def test_second_derivatives_of_kronecker_products_are_those_of_the_matrix():
    left, right = (jnp.linalg.qr(normal(i, n, n))[0] for i, n in ((5, 3), (6, 2)))
    a = left * jnp.array([1.0, 1.0, 2.0])[None] @ left.T
    g = right * jnp.array([0.5, 1.0])[None] @ right.T
    directions = normal(3, 3, 3), normal(4, 2, 2)
    v, w = normal(1, 3, 2), normal(2, 3, 2)

    def by_function(a, g):
        factors = matrix_functions.decomposed([a, g])
        return jnp.sum(w * matrix_functions.apply(rational(0.4), factors, v))

    def oracle(a, g):
        matrix = jnp.kron((a + a.T) / 2, (g + g.T) / 2)
        return w.ravel() @ by_solving(matrix, v.ravel(), 0.4)

    @jax.jit
    def run(*arguments):
        return [
            backwards(each, arguments, directions) for each in (by_function, oracle)
        ]

    assert errors(*run(a, g)) < 1e-9


@pytest.mark.parametrize("name", ["kfac of a table", "gram", "a sum"])
def test_derivatives_in_what_a_metric_is_made_of_are_those_of_its_matrix(name):
    metric = jax.jit(METRICS[name])()
    leaves, structure = jax.tree.flatten(metric)
    floats = [jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in leaves]
    size = metric.layout.size
    v, w, damping = normal(1, size), normal(2, size), jnp.asarray(0.4)

    def rebuilt(moving):
        moving = iter(moving)
        both = zip(leaves, floats, strict=True)
        return jax.tree.unflatten(
            structure, [next(moving) if moves else leaf for leaf, moves in both]
        )

    def by_function(moving, v, damping):
        metric = rebuilt(moving)
        found = metric.function(rational(damping), metric.layout.unravel(v))
        return w @ metric.layout.ravel(found)

    def oracle(moving, v, damping):
        return w @ by_solving(rebuilt(moving).dense(), v, damping)

    def symmetric(leaf):
        square = leaf.ndim == 2 and leaf.shape[0] == leaf.shape[1]
        return leaf + leaf.T if square else leaf

    @jax.jit
    def run(*arguments):
        both = [
            jax.value_and_grad(each, (0, 1, 2))(*arguments)
            for each in (by_function, oracle)
        ]
        # Factors are symmetric: only that part of a gradient means anything.
        return jax.tree.map(symmetric, both)

    moving = [leaf for leaf, moves in zip(leaves, floats, strict=True) if moves]
    assert errors(*run(moving, v, damping)) < 1e-8


def test_chains_of_an_operator_are_sums_over_eigenvectors():
    """Wᵀ Σ f[i, j, k] P_i D²F[s, t] P_j DF[u] P_k V, from any operand that is left out.

    F = Bᵀ B of rank 2, and f[x, y, z] = 1/((x + a)(y + a)(z + a)) for f = 1/(s + a).
    """
    rows, a = normal(0, 2, 3), 0.4
    s, t, u, v, w = ({0: normal(i, 2, 3)} for i in range(1, 6))
    v, w = v[0][0], w[0][0]
    run, constants = lifted(lambda s: 1 / (s + a), jnp.zeros(()))
    product = lambda rows, x: [rows.T @ (rows @ x)]
    evaluate = functools.partial(_evaluate, product, 3)
    chain = Chain(evaluate, run, (2,), False, (2, 1), ((0,),) * 3)
    operands = (w, s, t, u, v)

    @jax.jit
    def run_all():
        def paired(left_out):
            others = [None if i == left_out else x for i, x in enumerate(operands)]
            found = contraction(chain, ([rows],), (), tuple(constants), tuple(others))
            return ng.tree.inner(found, operands[left_out])

        return [paired(left_out) for left_out in range(5)]

    inverse = np.linalg.inv(np.asarray(rows.T @ rows) + a * np.eye(3))
    twice = s[0].T @ t[0] + t[0].T @ s[0]
    once = u[0].T @ rows + rows.T @ u[0]
    expected = w @ inverse @ twice @ inverse @ once @ inverse @ v
    assert errors(run_all(), [expected] * 5) < 1e-10


@pytest.mark.parametrize("second", ["along a line", "backwards"])
def test_second_derivatives_of_a_sum_are_exact_where_eigenvalues_repeat(second):
    """F and G depend on θ by squares; F + G is singular and has an eigenvalue twice."""
    theta, v, w, u = (
        jnp.array([1.0, 0.0, 0.0]),
        normal(1, 3),
        normal(2, 3),
        normal(3, 3),
    )
    layout = ng.tree.Layout.of({"x": theta})

    def by_function(theta):
        matrix = DenseMetric(layout, jnp.outer(theta, theta))
        total = 2.0 * matrix + DiagonalMetric(layout, theta**2)
        return total.function(lambda s: s**3 + 1 / s, {"x": v}, 0.4)["x"]

    def oracle(theta):
        matrix = 2 * jnp.outer(theta, theta) + jnp.diag(theta**2) + 0.4 * jnp.eye(3)
        return by_solving(matrix, v, 0.0)

    def along_a_line(function):
        slope = lambda theta: jax.jvp(function, (theta,), (u,))[1]
        return jax.jvp(slope, (theta,), (u,))[1]

    def backwards(function):
        slope = lambda theta: jax.grad(lambda theta: w @ function(theta))(theta) @ u
        return jax.grad(slope)(theta)

    of = along_a_line if second == "along a line" else backwards
    found, expected = jax.jit(lambda: (of(by_function), of(oracle)))()
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_second_derivatives_of_an_operator_are_differences(mode):
    """Root, inverse root and logarithm of Fᵀ F, of two parameters."""
    v = normal(1, 2)

    @jax.jit
    def functions(theta):
        rows = jnp.sin(theta * jnp.arange(1.0, 5.0).reshape(2, 2))
        operator = lambda x: rows.T @ (rows @ x)
        f = lambda s: jnp.sqrt(s) + 1 / jnp.sqrt(s) + jnp.log(s)
        return function_of_operator(f, operator, v, 2)

    check_grads(functions, (jnp.asarray(0.7),), order=2, modes=(mode,))


def test_second_derivatives_of_a_networks_operator_are_those_of_its_matrix():
    x, w = normal(0, 3, 1), normal(5, 3)
    model = ng.Model(
        lambda p, x: jnp.tanh(x * p["a"]) * p["b"][None],
        ng.families.NormalMean(),
        example_inputs=x[:1],
    )
    params = {"a": jnp.asarray(0.4), "b": normal(2, 2)}
    v = {"a": jnp.asarray(1.0), "b": normal(4, 2)}

    def by_function(params):
        metric = ng.curvature.MatrixFree(model).at(params, x)
        return w @ ravel_pytree(metric.function(rational(0.4), v))[0]

    def oracle(params):
        matrix = ng.curvature.Dense(model).at(params, x).dense()
        return w @ by_solving(matrix, ravel_pytree(v)[0], 0.4)

    @jax.jit
    def run(params):
        return [backwards(each, (params,), (v,)) for each in (by_function, oracle)]

    assert errors(*run(params)) < 1e-9


# Draws and estimates ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["gram", "matrix_free"])
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

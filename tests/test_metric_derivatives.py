"""Derivatives of f(F) v of first and second order: exact for any spectrum."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from metric_kinds import METRICS, normal
from problems import relative_error

import natgrad as ng
from natgrad.control_flow import lifted
from natgrad.metrics import DenseMetric, DiagonalMetric
from natgrad.solvers import matrix_functions
from natgrad.solvers.chains import Chain, contraction
from natgrad.solvers.lanczos import _evaluate, function_of_operator

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


def backwards(function, arguments, directions):
    """Value, gradient, and the gradient of a directional derivative."""
    every = tuple(range(len(arguments)))

    def along(*arguments):
        value, slopes = jax.value_and_grad(function, every)(*arguments)
        return ng.tree.inner(slopes, directions), (value, slopes)

    return jax.grad(along, every, has_aux=True)(*arguments)


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


def test_second_derivatives_of_a_sum_are_exact_where_eigenvalues_repeat():
    """F and G depend on θ by squares; F + G is singular and has an eigenvalue twice."""
    theta, v, u = jnp.array([1.0, 0.0, 0.0]), normal(1, 3), normal(3, 3)
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

    found, expected = jax.jit(
        lambda: [along_a_line(each) for each in (by_function, oracle)]
    )()
    assert relative_error(found, expected) < 1e-9


def test_second_derivatives_of_an_operator_are_differences():
    """Root, inverse root and logarithm of Fᵀ F, forwards over backwards.

    Differences are of fourth order, of numpy's eigenvalues.
    """
    v, w, h = normal(1, 2), normal(2, 2), 1e-3
    rows_of = lambda theta, xp: xp.sin(theta * np.arange(1.0, 5.0).reshape(2, 2))

    def of_eigenvalues(theta):
        rows = rows_of(theta, np)
        s, vectors = np.linalg.eigh(rows.T @ rows)
        each = np.sqrt(s) + 1 / np.sqrt(s) + np.log(s)
        return w @ (vectors * each @ vectors.T @ v)

    def of_operator(theta):
        rows = rows_of(theta, jnp)
        f = lambda s: jnp.sqrt(s) + 1 / jnp.sqrt(s) + jnp.log(s)
        return w @ function_of_operator(f, lambda x: rows.T @ (rows @ x), v, 2)

    values = [of_eigenvalues(0.7 + k * h) for k in (-2, -1, 0, 1, 2)]
    expected = np.dot([-1, 16, -30, 16, -1], values) / (12 * h**2)
    along = lambda theta: jax.jvp(jax.grad(of_operator), (theta,), (1.0,))[1]
    given = jax.jit(along)(0.7)
    assert abs(given - expected) < 1e-6 * abs(expected)


def test_second_derivatives_of_a_networks_operator_are_those_of_its_matrix():
    """F = ⅓ Σ_n cos²(x_n θ) x_n x_nᵀ is a multiple of I there, its derivatives are not.

    x_1 and x_2 are orthogonal, with one cosine; that of x_3 is 0.
    """
    first = np.array([[1.0, 0.5], [-0.5, 1.0]])
    theta = np.linalg.solve(first, [0.4, 0.4])
    third = np.array([1.0, -0.2])
    x = np.stack([*first, third * np.pi / 2 / (third @ theta)])
    model = ng.Model(
        lambda p, x: jnp.sin(x @ p)[:, None],
        ng.families.NormalMean(),
        example_inputs=x[:1],
    )
    params, v, w = jnp.asarray(theta), normal(4, 2), normal(5, 2)

    def by_function(params):
        metric = ng.curvature.MatrixFree(model).at(params, x)
        return w @ metric.function(rational(0.4), v)

    def oracle(params):
        matrix = ng.curvature.Dense(model).at(params, x).dense()
        return w @ by_solving(matrix, v, 0.4)

    @jax.jit
    def run(params):
        return [backwards(each, (params,), (v,)) for each in (by_function, oracle)]

    assert errors(*run(params)) < 1e-9

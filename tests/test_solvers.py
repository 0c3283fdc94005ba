"""Dense kernels: accuracy, visible fallbacks, derivatives, batches."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from problems import CASES, ravel, relative_error

import natgrad as ng
from natgrad import solvers
from natgrad.solvers import conjugate_gradients as krylov

KEY = jax.random.PRNGKey(0)


def spectrum(eigenvalues, dtype="float64", seed=0):
    """A symmetric matrix with these eigenvalues, and a vector."""
    rng = np.random.default_rng(seed)
    size = len(eigenvalues)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    matrix = (q * np.asarray(eigenvalues)) @ q.T
    return (
        jnp.asarray((matrix + matrix.T) / 2, dtype),
        jnp.asarray(rng.standard_normal(size), dtype),
    )


@pytest.mark.parametrize("decay", [1, 2, 4])
@pytest.mark.parametrize("damping", [1e-1, 1e-3])
def test_float32_solves_are_as_good_as_the_condition_number_allows(decay, damping):
    matrix, v = spectrum(np.logspace(0, -decay, 60), "float32")
    given, fallback, *_ = solvers.direct_solution(matrix, v, damping)
    exact = np.linalg.solve(
        np.asarray(matrix, "float64") + np.float64(np.float32(damping)) * np.eye(60), v
    )
    assert given.dtype == "float32"
    assert not fallback
    condition = 1 / (10.0**-decay + damping)
    assert relative_error(given, exact) < 3e-7 * condition


def test_refinement_leaves_a_residual_at_the_rounding_level_of_float32():
    matrix, v = spectrum(np.logspace(0, -5, 100), "float32")
    damping = jnp.float32(1e-4)
    damped = np.asarray(matrix, "float64") + np.float64(damping) * np.eye(100)
    backward_error = lambda x: (
        np.linalg.norm(v - damped @ x) / (np.linalg.norm(damped, 2) * np.linalg.norm(x))
    )
    given, *_ = solvers.direct_solution(matrix, v, damping)
    factor = jax.scipy.linalg.cho_factor(
        matrix + damping * jnp.eye(100, dtype="float32")
    )
    plain = jax.scipy.linalg.cho_solve(factor, v)
    assert backward_error(given) < 1e-7
    assert backward_error(given) < backward_error(plain)


def test_a_regular_system_is_solved_without_falling_back():
    matrix, v = spectrum(np.linspace(0.1, 1, 20))
    given, fallback, *_ = solvers.direct_solution(matrix, v, 0.0)
    assert not fallback
    assert relative_error(given, np.linalg.solve(matrix, v)) < 1e-12


def test_a_damped_singular_system_is_no_reason_to_fall_back():
    """v has parts outside the range of F, so x is large and |r|/|v| is not tiny."""
    matrix, v = spectrum(np.r_[np.zeros(100), np.linspace(0.5, 2, 100)], "float32")
    damping = np.float32(1e-4)
    given, fallback, *_ = solvers.direct_solution(matrix, v, damping)
    damped = np.asarray(matrix, "float64") + np.float64(damping) * np.eye(200)
    assert not fallback
    assert relative_error(given, np.linalg.solve(damped, v)) < 1e-2  # condition 2e4


def test_a_singular_system_without_damping_gives_the_least_norm_solution():
    matrix, v = spectrum([0, 0, 0, 0.2, 0.5, 1, 2])
    given, fallback, *_ = jax.jit(solvers.direct_solution)(matrix, v, 0.0)
    assert fallback
    assert relative_error(given, np.linalg.pinv(matrix, rcond=1e-10) @ v) < 1e-10
    pseudo, *_ = solvers.spectral_solution(matrix, v, 0.0)
    assert relative_error(pseudo, given) < 1e-12


def test_a_zero_matrix_without_damping_gives_zero():
    given, fallback, *_ = solvers.direct_solution(jnp.zeros((3, 3)), jnp.ones(3), 0.0)
    assert fallback
    assert (given == 0).all()


def test_an_indefinite_matrix_is_clipped_and_reported():
    matrix, v = spectrum([-0.1, 0.5, 1.0])
    given, fallback, *_ = solvers.direct_solution(matrix, v, 0.01)
    assert fallback
    values, vectors = np.linalg.eigh(matrix)
    expected = vectors @ ((vectors.T @ v) / (np.maximum(values, 0) + 0.01))
    assert relative_error(given, expected) < 1e-12


def test_not_a_number_stays_not_a_number():
    matrix, v = spectrum([0.5, 1.0, 2.0])
    given, *_ = solvers.direct_solution(matrix.at[0, 0].set(jnp.nan), v, 0.1)
    assert not jnp.isfinite(given).any()


def test_a_batch_falls_back_only_for_its_singular_members():
    regular, v = spectrum([0.5, 1.0, 2.0])
    singular, _ = spectrum([0.0, 1.0, 2.0])
    given, fallback, *_ = jax.jit(jax.vmap(solvers.direct_solution, (0, None, None)))(
        jnp.stack([regular, singular]), v, 0.0
    )
    assert fallback.tolist() == [False, True]
    assert relative_error(given[0], np.linalg.solve(regular, v)) < 1e-12
    assert relative_error(given[1], np.linalg.pinv(singular, rcond=1e-10) @ v) < 1e-10


def test_a_batch_keeps_the_eigendecomposition_behind_a_conditional():
    matrices = jnp.stack([jnp.eye(4)] * 3)
    solve = jax.vmap(solvers.direct_solution, (0, 0, None))
    text = jax.jit(solve).lower(matrices, jnp.ones((3, 4)), 0.1).compile().as_text()
    assert re.search(r"conditional", text)


@functools.cache
def derivatives_of_a_solve(kernel):
    """(½ matrix, v, damping) -> first and second derivatives of x, given and exact."""

    def given(half, v, damping):
        return kernel(half + half.T, v, damping).value

    def exact(half, v, damping):
        return jnp.linalg.solve(half + half.T + damping * jnp.eye(4), v)

    def second(solution, argument):
        return jax.jacfwd(jax.jacrev(solution, argument), 2)

    @jax.jit
    def all_of_them(*arguments):
        return [
            (
                [d(given, i)(*arguments) for d in (jax.jacrev, jax.jacfwd)],
                jax.jacrev(exact, i)(*arguments),
                second(given, i)(*arguments),
                second(exact, i)(*arguments),
            )
            for i in range(3)
        ]

    return all_of_them


@pytest.mark.parametrize("kernel", [solvers.direct_solution, solvers.spectral_solution])
@pytest.mark.parametrize(
    "eigenvalues", [[0.3, 0.7, 1.0, 2.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]]
)
def test_derivatives_of_a_solve_are_those_of_the_solution(kernel, eigenvalues):
    """Also where eigenvalues repeat; forward, reverse and second order."""
    matrix, v = spectrum(eigenvalues)
    for firsts, first, second, exact in derivatives_of_a_solve(kernel)(
        matrix / 2, v, 0.3
    ):
        for given in firsts:
            assert relative_error(given, first) < 1e-12
        assert relative_error(second, exact) < 1e-11


def test_differentiating_a_solve_factorises_once():
    """The implicit rule reuses the factors; no derivative of a decomposition."""
    matrix, v = spectrum([0.3, 0.7, 1.0, 2.0])
    objective = lambda m: jnp.sum(solvers.direct_solution(m, v, 0.1).value ** 2)
    text = jax.jit(jax.grad(objective)).lower(matrix).compile().as_text()
    assert len(re.findall(r"custom-call.*potrf", text)) == 1


@pytest.mark.parametrize("damping", [0.1, 1e-3])
def test_named_solvers_agree_on_a_metric(damping, tolerance):
    model, params, x, _ = CASES["categorical"].problem()
    metric = jax.jit(ng.curvature.Dense(model).at)(params, x)
    expected = np.linalg.solve(
        metric.dense() + damping * np.eye(metric.layout.size), ravel(params)
    )
    for solver in (solvers.cholesky, solvers.pseudo_inverse, solvers.cg):
        given = jax.jit(solver)(metric, params, damping)
        assert relative_error(ravel(given), expected) < tolerance("iterative")


def test_conjugate_gradients_stop_at_the_given_number_of_iterations():
    model, params, x, _ = CASES["categorical"].problem()
    whole = ng.curvature.MatrixFree(model)
    exact = jax.jit(lambda p: whole.at(p, x).solve(p, 1e-3))(params)
    errors = []
    for iterations in (1, 4, 16):
        stop = krylov.RelativeResidual(max_iterations=iterations)
        curvature = ng.curvature.MatrixFree(model, stop=stop)
        given = jax.jit(lambda p, c=curvature: c.at(p, x).solve(p, 1e-3))(params)
        errors.append(relative_error(ravel(given), ravel(exact)))
    assert errors[0] > errors[1] > errors[2] > 0


def test_a_diagonal_solve_is_zero_where_the_diagonal_is():
    given, fallback, *_ = solvers.diagonal_solution(
        jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0]), 0.0
    )
    assert given.tolist() == [0.5, 0.0]
    assert fallback
    _, fallback, *_ = solvers.diagonal_solution(
        jnp.array([2.0, 0.0]), jnp.array([1.0, 0.0]), 0.0
    )
    assert not fallback
    check_grads(
        lambda d, v: solvers.diagonal_solution(d, v, 0.0).value,
        (jnp.array([2.0, 0.5]), jnp.ones(2)),
        order=2,
    )

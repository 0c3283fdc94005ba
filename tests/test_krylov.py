"""Conjugate gradients: stopping, starts, preconditioners, and their cost."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, dense_of, ravel, relative_error

import natgrad as ng
from natgrad.curvature import Identity, Jacobi, Kronecker, MatrixFree, Nystrom
from natgrad.solvers.conjugate_gradients import (
    FixedIterations,
    ModelDecrease,
    RelativeResidual,
    conjugate_gradients,
)

PRECONDITIONERS = {
    "identity": Identity(),
    "jacobi": Jacobi(),
    "kronecker": Kronecker(),
    "nystrom": Nystrom(12),
}


def system(size=40, decay=3, seed=0):
    generator = np.random.default_rng(seed)
    q = np.linalg.qr(generator.standard_normal((size, size)))[0]
    matrix = (q * np.logspace(0, -decay, size)) @ q.T
    return jnp.asarray(matrix), jnp.asarray(generator.standard_normal(size))


@functools.partial(jax.jit, static_argnums=2)
def run(matrix, v, stop, start=None):
    return conjugate_gradients(lambda x: matrix @ x, v, lambda x: x, stop, start)


def iterates(matrix, v, count):
    """The first `count` iterates of the textbook's method, in NumPy."""
    matrix, r = np.asarray(matrix), np.asarray(v)
    x, d = np.zeros_like(r), r
    for _ in range(count):
        yield x
        step = r @ r / (d @ matrix @ d)
        x, new = x + step * d, r - step * matrix @ d
        r, d = new, new + (new @ new) / (r @ r) * d


def test_it_stops_when_the_residual_is_small_enough():
    matrix, v = system()
    counts = []
    for tolerance in (1e-2, 1e-5, 1e-9):
        x, count = run(matrix, v, RelativeResidual(tolerance))
        assert jnp.linalg.norm(v - matrix @ x) < 1.1 * tolerance * jnp.linalg.norm(v)
        counts.append(int(count))
    assert counts[0] < counts[1] < counts[2]
    assert run(matrix, v, RelativeResidual(1e-9, 3))[1] == 3


@pytest.mark.parametrize("epsilon", [1e-2, 1e-3])
def test_it_stops_when_the_quadratic_model_stops_falling(epsilon):
    """Exactly where the rule of Martens, applied by hand to every iterate, says so."""
    matrix, v = system(60, 2)
    values = [0.5 * x @ matrix @ x - v @ x for x in iterates(matrix, v, 45)]

    def stops(i):
        k = max(10, i // 10)
        fall = values[i] - values[i - k] if i > k else -1.0
        return i > k and values[i] < 0 and fall / values[i] < k * epsilon

    expected = next(i for i in range(45) if stops(i))
    assert run(matrix, v, ModelDecrease(epsilon))[1] == expected


def test_a_fixed_number_of_iterations_does_not_depend_on_values():
    matrix, v = system()
    many = jnp.stack([v, 0 * v, 1e-8 * v])
    _, counts = jax.jit(jax.vmap(lambda v: run(matrix, v, FixedIterations(7))))(many)
    assert counts.tolist() == [7, 7, 7]
    x, _ = run(
        matrix, v, FixedIterations(300)
    )  # far beyond convergence: nothing to divide by
    assert relative_error(x, np.linalg.solve(matrix, v)) < 1e-9


def test_under_vmap_a_fixed_loop_needs_no_mask():
    """The loop's condition must not look at the batch: it is a count alone."""
    matrix, v = system(8)

    def looks_at_both(stop):
        solve = jax.vmap(lambda v: run(matrix, v, stop)[0])
        text = jax.jit(solve).lower(jnp.stack([v, v])).as_text()
        (condition,) = re.findall(r"cond \{(.*?)\} do", text, flags=re.DOTALL)
        return "tensor<2xi1>" in condition

    assert not looks_at_both(FixedIterations(5))
    assert looks_at_both(RelativeResidual(1e-3))


def test_a_start_saves_iterations_and_changes_no_solution():
    matrix, v = system()
    exact = jnp.linalg.solve(matrix, v)
    cold, near = run(matrix, v, RelativeResidual(1e-6)), exact + 1e-4 * v
    warm = run(matrix, v, RelativeResidual(1e-6), near)
    assert warm[1] < cold[1]
    # Ten times too long a start is as good: its best multiple is taken.
    assert run(matrix, v, RelativeResidual(1e-6), 10 * near)[1] == warm[1]
    for x, _ in (cold, warm):
        assert jnp.linalg.norm(v - matrix @ x) < 2e-6 * jnp.linalg.norm(v)
    assert run(matrix, v, RelativeResidual(1e-6), 0 * v)[1] == cold[1]


def test_the_derivative_costs_one_more_solve_however_many_iterations():
    """Nothing is kept of the iterations: the same residuals for 10 as for 1000."""
    matrix, v = system()

    def memory(iterations):
        objective = lambda m, v: jnp.sum(
            run(m, v, RelativeResidual(1e-12, iterations))[0] ** 2
        )
        program = jax.jit(jax.grad(objective, (0, 1))).lower(matrix, v).compile()
        return program.memory_analysis().temp_size_in_bytes

    assert memory(10) == memory(1000)
    objective = lambda m, v: jnp.sum(run(m @ m.T, v, RelativeResidual(1e-13))[0] ** 2)
    exact = lambda m, v: jnp.sum(jnp.linalg.solve(m @ m.T, v) ** 2)
    for argument in (0, 1):
        given = jax.grad(objective, argument)(matrix + jnp.eye(40), v)
        expected = jax.grad(exact, argument)(matrix + jnp.eye(40), v)
        assert relative_error(given, expected) < 1e-9


# Preconditioners ----------------------------------------------------------------------


@pytest.mark.parametrize("name", PRECONDITIONERS)
def test_a_preconditioner_is_symmetric_and_positive(name):
    model, params, x, _ = CASES["categorical"].problem()
    curvature = MatrixFree(model, preconditioner=PRECONDITIONERS[name])
    size = ng.tree.Layout.of(params).size

    @jax.jit
    def inverse(params, x):
        statistics = curvature.estimate(params, x).preconditioner
        apply = curvature.preconditioner.inverse(
            curvature, statistics, params, jnp.asarray(0.1)
        )
        return jax.vmap(apply)(jnp.eye(size))

    matrix = inverse(params, x)
    assert relative_error(matrix, matrix.T) < 1e-10
    assert np.linalg.eigvalsh(matrix).min() > 0


def test_nystrom_finds_the_whole_of_a_matrix_of_low_rank():
    model, params, x, _ = CASES["poisson"].problem(examples=3)  # rank 3
    curvature = MatrixFree(model, preconditioner=Nystrom(6))
    vectors, values = jax.jit(curvature.estimate)(params, x).preconditioner
    expected = dense_of(ng.curvature.Dense(model), params, x)
    assert relative_error((vectors * values[None]) @ vectors.T, expected) < 1e-7


@pytest.mark.parametrize("family", ["categorical", "normal_mean", "bernoulli"])
def test_good_preconditioners_save_iterations_and_change_no_solution(family):
    model, params, x, y = CASES[family].problem()
    gradient = jax.jit(jax.grad(model.loss))(params, x, y)
    counts = {}
    expected = np.linalg.solve(
        dense_of(ng.curvature.Dense(model), params, x)
        + 1e-3 * np.eye(ravel(params).size),
        ravel(gradient),
    )
    for name, preconditioner in PRECONDITIONERS.items():
        curvature = MatrixFree(
            model, stop=RelativeResidual(1e-9), preconditioner=preconditioner
        )
        found = jax.jit(lambda p, g, c=curvature: c.at(p, x).solution(g, 1e-3))(
            params, gradient
        )
        counts[name] = int(found.iterations)
        assert relative_error(ravel(found.value), expected) < 1e-6
    assert counts["nystrom"] < counts["identity"]


def test_the_kronecker_preconditioner_undoes_badly_scaled_inputs():
    """What K-FAC knows exactly: the second moments of a layer's inputs."""
    model, params, x, y = CASES["normal_mean"].problem(examples=40)
    scales = jnp.array([30.0, 1.0, 0.1])
    x = x * scales[None]
    params["in"]["w"] = params["in"]["w"] / scales[:, None]
    gradient = jax.grad(model.loss)(params, x, y)

    @jax.jit
    def iterations(params, gradient):
        return [
            MatrixFree(
                model, stop=RelativeResidual(1e-6), preconditioner=preconditioner
            )
            .at(params, x)
            .solution(gradient, 1e-4)
            .iterations
            for preconditioner in (Identity(), Kronecker())
        ]

    plain, scaled = iterations(params, gradient)
    assert scaled < 0.7 * plain


def test_a_training_run_reports_iterations_and_starts_where_it_was():
    model, params, x, y = CASES["categorical"].problem()
    stop = RelativeResidual(1e-3)

    def run(tx):
        def step(carry, _):
            params, state = carry
            gradient = jax.grad(model.loss)(params, x, y)
            updates, state = tx.update(gradient, state, params, inputs=x)
            params = optax.apply_updates(params, updates)
            return (params, state), state[0].health

        start = (params, tx.init(params))
        (params_, _), health = jax.jit(
            lambda start: jax.lax.scan(step, start, None, 12)
        )(start)
        return ravel(params_), health

    warm, health = run(ng.matrix_free(0.05, model, damping=1e-2, stop=stop))
    plain = optax.chain(
        ng.scale_by_curvature(MatrixFree(model, stop=stop), damping=1e-2),
        optax.scale(-0.05),
    )
    cold, cold_health = run(plain)
    assert relative_error(warm, cold) < 1e-2
    assert (health.residual < 1.1e-3).all()
    assert health.iterations[0] == cold_health.iterations[0] > 0
    assert health.iterations[6:].sum() < cold_health.iterations[6:].sum()


def test_a_warm_start_is_refused_where_nothing_iterates():
    model, params, x, _ = CASES["categorical"].problem()
    tx = ng.scale_by_curvature(
        ng.curvature.Dense(model), solver=ng.curvature.WarmStart()
    )
    with pytest.raises(ValueError, match="MatrixFree"):
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, inputs=x), params)

"""Derivatives through training are exact: ten steps against central differences."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, INPUTS, dense_of, mlp, ravel, relative_error

import natgrad as ng

STEPS = 10
CASE = CASES["categorical"]
_, PARAMS, X, Y = CASE.problem(examples=5)  # fewer examples than hidden weights: F is
_, _, X_TEST, Y_TEST = CASE.problem(seed=9, examples=5)  # singular, 0 repeats


def train(name, hyper):
    """Validation loss after ten steps, as a function of everything one might tune."""
    apply = lambda params, inputs: CASE.link(mlp(params, inputs["x"]))
    model = ng.Model(
        apply,
        CASE.family,
        example_inputs={"x": X[:1], "weights": jnp.ones(1)},
        weights=lambda inputs: inputs["weights"],
    )
    tx = optax.chain(
        ng.scale_by_curvature(
            ng.CURVATURES[name](model), damping=hyper["damping"], decay=0.0
        ),
        optax.scale_by_learning_rate(hyper["learning_rate"]),
    )
    inputs = {"x": X, "weights": hyper["weights"]}

    def step(carry, _):
        params, state = carry
        grads = jax.grad(model.loss)(params, inputs, Y)
        updates, state = tx.update(grads, state, params, inputs=inputs, targets=Y)
        return (optax.apply_updates(params, updates), state), None

    start = (hyper["params"], tx.init(hyper["params"]))
    (params, _), _ = jax.lax.scan(step, start, None, length=STEPS)
    return CASE.model().loss(params, X_TEST, Y_TEST)


HYPER = {
    "damping": jnp.array(0.2, float),
    "learning_rate": jnp.array(0.3, float),
    "params": PARAMS,
    "weights": jnp.array([1.0, 0.5, 2.0, 1.0, 0.7]),
}


def directions():
    """One random direction for each hyperparameter, and one for all together."""
    rng = np.random.default_rng(0)
    draw = lambda leaf: jnp.asarray(rng.standard_normal(np.shape(leaf)), float)
    zero = jax.tree.map(jnp.zeros_like, HYPER)
    for name in HYPER:
        yield name, {**zero, name: jax.tree.map(draw, HYPER[name])}


# One of each way to solve: the other entries of the registry share these.
SOLVED = ("dense", "block_diagonal", "diagonal", "kfac", "ekfac", "gram", "matrix_free")
SOLVED += ("kfoc",)  # through its power method


@pytest.mark.parametrize("name", SOLVED)
def test_derivatives_through_ten_steps_equal_central_differences(name, tolerance):
    @jax.jit
    def program(hyper, direction):
        value, push = jax.linearize(lambda hyper: train(name, hyper), hyper)
        (gradient,) = jax.linear_transpose(push, hyper)(jnp.ones_like(value))
        return value, gradient, push(direction)

    def shifted(d, h):
        return program(jax.tree.map(lambda a, b: a + h * b, HYPER, d), d)[0]

    for which, direction in directions():
        _, gradient, forward = program(HYPER, direction)
        h = 1e-4
        coarse = (shifted(direction, 2 * h) - shifted(direction, -2 * h)) / (4 * h)
        fine = (shifted(direction, h) - shifted(direction, -h)) / (2 * h)
        expected = (4 * fine - coarse) / 3
        reverse = jnp.vdot(ravel(gradient), ravel(direction))
        assert abs(expected) > 1e-6, which
        bound = tolerance("differences") * (abs(expected) + 1e-2)
        assert abs(reverse - expected) < bound, which
        assert abs(forward - expected) < bound, which


def test_the_fisher_has_repeated_eigenvalues_in_the_test_above():
    matrix = dense_of(ng.curvature.Dense(CASE.model()), PARAMS, X)
    values = np.linalg.eigvalsh(matrix)
    assert (np.abs(values) < 1e-12 * values.max()).sum() > 5


def test_the_solution_of_converged_conjugate_gradients_is_differentiated_implicitly():
    """Its derivative does not depend on how many iterations were needed."""
    _, params, x, _ = CASE.problem(examples=5)

    def length(damping, iterations):
        curvature = ng.curvature.MatrixFree(
            CASE.model(), stop=ng.krylov.RelativeResidual(max_iterations=iterations)
        )
        solution = curvature.at(params, x).solve(params, damping)
        return jnp.vdot(ravel(solution), ravel(params))

    matrix = dense_of(ng.curvature.Dense(CASE.model()), params, x)
    solve = lambda b, damping: np.linalg.solve(
        matrix + damping * np.eye(len(matrix)), b
    )
    expected = -np.vdot(solve(ravel(params), 0.1), solve(ravel(params), 0.1))
    for iterations in (60, 200):
        given = jax.jit(jax.grad(length), static_argnums=1)(0.1, iterations)
        assert abs(given - expected) < 1e-8 * abs(expected)


def test_second_derivatives_through_a_step_exist_and_are_symmetric():
    def objective(vector):
        hyper = {**HYPER, "damping": vector[0], "learning_rate": vector[1]}
        return train("dense", hyper)

    gradient = jax.grad(objective)
    both = jax.jacfwd(lambda x: (gradient(x),) * 2, has_aux=True)  # one program
    at, h = jnp.array([0.2, 0.3]), 1e-4
    shifts = h * jnp.array([[0.0, 0.0], [1.0, 0.0], [-1.0, 0.0]])
    hessians, gradients = jax.jit(jax.vmap(both))(at[None] + shifts)
    hessian = hessians[0]
    assert jnp.isfinite(hessian).all()
    assert abs(hessian[0, 1] - hessian[1, 0]) < 1e-9
    differences = (gradients[1] - gradients[2]) / (2 * h)
    assert relative_error(hessian[0], differences) < 1e-6


def test_at_a_fixed_point_of_training_the_damping_does_not_matter():
    """There the gradient is 0, so the metric drops out of the derivative."""
    x = jax.random.normal(jax.random.PRNGKey(0), (30, INPUTS))
    y = jax.random.bernoulli(jax.random.PRNGKey(1), 0.4, (30, 1)).astype(int)
    model = ng.Model(lambda w, x: x @ w, ng.families.Bernoulli())

    def trained(damping):
        tx = ng.natural_gradient(1.0, model, damping=damping)
        step = lambda carry, _: (_step(tx, carry), None)

        def _step(tx, carry):
            w, state = carry
            grads = jax.grad(model.loss)(w, x, y)
            updates, state = tx.update(grads, state, w, inputs=x)
            return optax.apply_updates(w, updates), state

        w = jnp.zeros((INPUTS, 1))
        (w, _), _ = jax.lax.scan(step, (w, tx.init(w)), None, length=60)
        return w

    trained = jax.jit(trained)
    sensitivity = jax.jit(jax.jacfwd(trained))(1e-3)
    assert jnp.abs(sensitivity).max() < 1e-12
    gradient = jax.jit(jax.grad(model.loss))
    assert jnp.abs(gradient(trained(1e-3), x, y)).max() < 1e-12

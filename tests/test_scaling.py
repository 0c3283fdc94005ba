"""Marquardt's damping: against dense algebra, and blind to units."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from contract import LAMBDA, X, curvature_of, flat, gradient_of, oracle, start

import natgrad as ng

FORMS = {
    "dense": (curvature_of("dense"), None),
    "gram": (curvature_of("gram"), None),
    "cg": (curvature_of("dense"), ng.solvers.cg),
}


@pytest.mark.parametrize("name", FORMS)
def test_steps_are_damped_by_the_largest_diagonal_so_far(name, tolerance):
    curvature, solver = FORMS[name]
    tx = ng.scale_by_curvature(
        curvature, damping=LAMBDA, solver=ng.scaling.Marquardt(solver)
    )
    step = jax.jit(lambda g, s, p, x: tx.update(g, s, p, inputs=x))
    params, state = start(), tx.init(start())
    gradient, largest = gradient_of(params), 0.0
    for x in (2 * X, X):  # the second alone has a smaller diagonal
        known = oracle(params, x)
        largest = np.maximum(largest, np.diag(known.fisher))
        moved, state = step(gradient, state, params, x)
        matrix = known.fisher + LAMBDA * np.diag(largest)
        expected = np.linalg.solve(matrix, flat(gradient))
        rtol = tolerance("iterative" if solver else "solve")
        np.testing.assert_allclose(flat(moved), expected, rtol, rtol)
        assert state.health.residual < 1e-7
        ratio = expected @ known.fisher @ expected / (flat(gradient) @ expected)
        np.testing.assert_allclose(state.health.ratio, ratio, rtol)


def test_a_step_does_not_depend_on_the_units_of_parameters(tolerance):
    """θ = c φ with c from 1e-6 to 1e6: the step in θ is c times that in φ."""
    rng = np.random.default_rng(0)
    x, y = jnp.asarray(rng.normal(size=(20, 5))), jnp.asarray(rng.normal(size=(20, 1)))
    units = jnp.asarray([1e-6, 1e-3, 1.0, 1e3, 1e6])

    @jax.jit
    def step(units):
        apply = lambda p, x: jnp.tanh(x @ (units * p))[:, None]
        model = ng.Model(apply, ng.families.NormalMean())
        params = jnp.linspace(0.1, 0.5, 5) / units
        tx = ng.scale_by_curvature(
            ng.curvature.Dense(model), damping=0.1, solver=ng.scaling.Marquardt()
        )
        gradient = jax.grad(model.loss)(params, x, y)
        return units * tx.update(gradient, tx.init(params), params, inputs=x)[0]

    expected = step(jnp.ones(5))
    np.testing.assert_allclose(step(units), expected, tolerance("solve"))


def test_what_no_output_feels_is_left_alone():
    model = ng.Model(lambda p, x: x * p[0], ng.families.NormalMean())
    x, params = jnp.ones((4, 1)), jnp.array([1.0, 2.0])

    @jax.jit
    def solved(params):
        metric = ng.curvature.Dense(model).at(params, x)
        return ng.scaling.Marquardt()(metric, jnp.array([3.0, 0.0]), 0.5)

    found = solved(params)
    np.testing.assert_allclose(found, [2.0, 0.0])

"""What natural gradients promise: invariance, Newton's method, the order of KL."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, dense_of, relative_error

import natgrad as ng
from natgrad.curvature import Dense

KEY = jax.random.PRNGKey(2)


@functools.partial(jax.jit, static_argnums=0)
def natural_step(model, params, x, y, learning_rate=1.0, damping=0.0):
    tx = optax.chain(
        ng.scale_by_curvature(Dense(model), damping=damping),
        optax.scale_by_learning_rate(learning_rate),
    )
    grads = jax.grad(model.loss)(params, x, y)
    updates, _ = tx.update(grads, tx.init(params), params, inputs=x)
    return optax.apply_updates(params, updates)


@functools.cache
def regular_problem():
    """Logistic regression: F is regular, so the undamped step is unique."""
    x = jax.random.normal(KEY, (20, 3))
    y = jax.random.bernoulli(KEY, 0.4, (20, 1)).astype(int)
    model = ng.Model(lambda w, x: x @ w, ng.families.Bernoulli())
    return model, jnp.array([[0.3], [-0.5], [0.2]]), x, y


def in_chart(model, chart):
    """The model in other coordinates φ, with θ = chart(φ)."""
    return ng.Model(lambda phi, x: model.apply(chart(phi), x), model.family)


@pytest.mark.parametrize("learning_rate", [0.1, 1.0, 3.0])
def test_an_undamped_step_is_the_same_in_affine_coordinates(learning_rate, tolerance):
    model, w, x, y = regular_problem()
    matrix = jnp.array([[2.0, 0.3, 0.0], [0.0, 0.1, 1.0], [-5.0, 0.0, 0.4]])
    chart = lambda phi: matrix @ phi + 0.7
    phi = jnp.linalg.solve(matrix, w - 0.7)
    there = natural_step(in_chart(model, chart), phi, x, y, learning_rate)
    here = natural_step(model, w, x, y, learning_rate)
    assert relative_error(chart(there), here) < tolerance("identity")


def test_damping_breaks_affine_invariance():
    model, w, x, y = regular_problem()
    chart = lambda phi: 3 * phi
    there = natural_step(in_chart(model, chart), w / 3, x, y, damping=0.1)
    assert (
        relative_error(chart(there), natural_step(model, w, x, y, damping=0.1)) > 1e-2
    )


@pytest.mark.parametrize("name", ["categorical", "normal_mean_log_scale"])
def test_outputs_of_a_singular_network_move_alike_in_affine_coordinates(name):
    """F is singular: least-norm steps differ in θ, not in what they do to the law."""
    model, params, x, y = CASES[name].problem()
    scales = jax.tree.map(lambda leaf: 0.5 + jnp.abs(jnp.sin(leaf * 9)), params)
    times = lambda a, b: jax.tree.map(jnp.multiply, a, b)
    chart = lambda phi: times(phi, scales)
    phi = jax.tree.map(jnp.divide, params, scales)

    @functools.partial(jax.jit, static_argnums=0)
    def velocity(apply, at):
        model = ng.Model(apply, CASES[name].family)
        metric = Dense(model).at(at, x)
        gradient = jax.grad(model.loss)(at, x, y)
        step = ng.solvers.pseudo_inverse(metric, gradient, 0.0)
        z_dot = jax.jvp(lambda p: model.outputs(p, x), (at,), (step,))[1]
        shift = z_dot.mean(-1, keepdims=True) if name == "categorical" else 0
        return z_dot - shift

    given = velocity(in_chart(model, chart).apply, phi)
    assert relative_error(given, velocity(model.apply, params)) < 1e-6


def test_between_nonlinear_charts_one_step_differs_at_second_order():
    """A path of 1/h steps therefore differs at first order (GEOMETRY of flows)."""
    model, w, x, y = regular_problem()
    chart = lambda phi: jnp.sinh(phi) + 0.2 * phi**2
    phi = np.zeros_like(w)
    for _ in range(60):  # Newton's method for chart(phi) = w, entry by entry
        phi = phi - (np.sinh(phi) + 0.2 * phi**2 - w) / (np.cosh(phi) + 0.4 * phi)
    phi = jnp.asarray(phi)
    assert relative_error(chart(phi), w) < 1e-14
    there = in_chart(model, chart)

    def gap(h):
        return float(
            jnp.linalg.norm(
                chart(natural_step(there, phi, x, y, h))
                - natural_step(model, w, x, y, h)
            )
        )

    orders = [np.log2(gap(2 * h) / gap(h)) for h in (1e-2, 5e-3)]
    assert np.allclose(orders, 2, atol=0.05)


def test_between_nonlinear_charts_a_path_differs_at_first_order():
    model, w, x, y = regular_problem()
    chart = jnp.sinh
    there, phi = in_chart(model, chart), jnp.arcsinh(w)

    def gap(steps):
        ends = []
        for m, at, back in ((model, w, lambda w: w), (there, phi, chart)):
            for _ in range(steps):
                at = natural_step(m, at, x, y, 1 / steps)
            ends.append(back(at))
        return float(jnp.linalg.norm(ends[0] - ends[1]))

    assert abs(np.log2(gap(32) / gap(64)) - 1) < 0.1


def test_one_exact_step_solves_linear_regression():
    """Newton's method; the noise scale cancels."""
    x = jax.random.normal(KEY, (15, 4))
    y = jax.random.normal(jax.random.PRNGKey(8), (15, 2))
    model = ng.Model(lambda w, x: x @ w, ng.families.NormalMean(2.5))
    w = natural_step(model, jnp.ones((4, 2)), x, y)
    assert relative_error(w, np.linalg.lstsq(x, y, rcond=None)[0]) < 1e-11


def test_on_logistic_regression_steps_are_iteratively_reweighted_least_squares():
    model, w, x, y = regular_problem()
    for _ in range(5):
        eta = np.asarray(x @ w)[:, 0]
        p = 1 / (1 + np.exp(-eta))
        weight = p * (1 - p)
        response = eta + (np.asarray(y)[:, 0] - p) / weight
        root = np.sqrt(weight)
        expected = np.linalg.lstsq(root[:, None] * x, root * response, rcond=None)[0]
        w = natural_step(model, w, x, y)
        assert relative_error(w[:, 0], expected) < 1e-10


@pytest.mark.parametrize("name", CASES)
def test_half_the_squared_length_is_the_divergence_to_third_order(name):
    model, params, x, _ = CASES[name].problem()
    direction = jax.tree.map(lambda leaf: jnp.cos(7 * leaf), params)

    @jax.jit
    def divergence(h):
        other = jax.tree.map(lambda p, d: p + h * d, params, direction)
        square = Dense(model).at(params, x).norm(direction) ** 2
        return model.kl(params, other, x), square / 2

    def gap(h):
        given, half_square = map(float, divergence(h))
        return abs(given - half_square * h**2)

    orders = [np.log2(gap(2 * h) / gap(h)) for h in (1.6e-2, 8e-3)]
    assert min(orders) > 2.8


def test_the_empirical_fisher_is_not_invariant_under_a_sufficient_statistic():
    """n observations of N(θ, s²): Σ(xᵢ − θ)²/s⁴; from their mean, n²(x̄ − θ)²/s⁴."""
    n, scale, theta = 6, 0.8, jnp.array([0.4])
    data = jax.random.normal(KEY, (1, n))
    all_of_them = ng.Model(
        lambda t, _: jnp.broadcast_to(t[None], (1, n)), ng.families.NormalMean(scale)
    )
    their_mean = ng.Model(
        lambda t, _: t[None], ng.families.NormalMean(scale / np.sqrt(n))
    )
    exact = [dense_of(Dense(m), theta, None)[0, 0] for m in (all_of_them, their_mean)]
    assert np.allclose(exact, n / scale**2, rtol=1e-12)
    empirical = ng.curvature.Empirical()
    mean = data.mean(1, keepdims=True)
    given = [
        dense_of(Dense(m, empirical), theta, None, y)[0, 0]
        for m, y in ((all_of_them, data), (their_mean, mean))
    ]
    score = (data.sum() - n * theta[0]) / scale**2
    assert np.allclose(given, score**2, rtol=1e-10)
    separate = ng.Model(lambda t, _: t[None], ng.families.NormalMean(scale))
    by_row = dense_of(Dense(separate, empirical), theta, None, data.T)[0, 0] * n
    expected = ((data - theta[0]) ** 2).sum() / scale**4
    assert np.isclose(by_row, expected, rtol=1e-10)
    assert abs(by_row - given[1]) > 0.1 * expected


def test_at_a_stationary_point_adams_second_moment_vanishes_but_the_fisher_does_not():
    model, w, x, y = regular_problem()
    for _ in range(15):
        w = natural_step(model, w, x, y)
    gradient = np.asarray(jax.jit(jax.grad(model.loss))(w, x, y))
    diagonal = np.diag(dense_of(ng.curvature.Diagonal(model), w, x))
    assert (gradient**2).max() < 1e-25
    assert diagonal.min() > 1e-2

"""K-FAC that finds its own steps: γ, λ, (α, μ) together, in a plain optax loop."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import describe

import natgrad as ng
from natgrad import adaptive

N, FEATURES, OUTPUTS = 16, 4, 2
RNG = np.random.default_rng(0)
X = np.asarray(RNG.normal(size=(N, FEATURES)) * [1, 3, 0.3, 1], "float32")
Y = np.asarray(X @ RNG.normal(size=(FEATURES, OUTPUTS)) + 1, "float32")
MODEL = ng.Model(
    lambda params, x: x @ params["w"] + params["b"][None],
    ng.families.NormalMean(0.5),
    example_inputs=X[:1],
)
PARAMS = {"w": jnp.zeros((FEATURES, OUTPUTS), "float32"), "b": jnp.zeros(2, "float32")}
REFRESH = ng.Refresh(inverses=3)
TRIALS = adaptive.Trials(period=4, factor=0.5)


def optimizer(damping=1.0, weight_decay=0.0):
    return ng.kfac_adaptive(
        MODEL,
        damping=damping,
        weight_decay=weight_decay,
        refresh=REFRESH,
        trials=TRIALS,
        rule=adaptive.Nielsen(),
    )


def step(tx, params, state, x=X, y=Y):
    value, grads = jax.value_and_grad(MODEL.loss)(params, x, y)
    batch = {"inputs": x, "targets": y, "value": value, "value_fn": MODEL.loss}
    updates, state = tx.update(grads, state, params, **batch)
    return optax.apply_updates(params, updates), state


@functools.cache
def program():
    """(damping, inputs of each step) -> the last carry; every loss, θ and γ before."""

    def run(damping, xs):
        tx = optimizer(damping)

        def one(carry, x):
            seen = MODEL.loss(carry[0], X, Y), carry[0], carry[1].inner.gamma
            return step(tx, *carry, x), seen

        return jax.lax.scan(one, (PARAMS, tx.init(PARAMS)), xs)

    return jax.jit(jax.vmap(run, (0, None)))


DAMPINGS = jnp.asarray([1e-3, 1.0, 30.0], "float32")
XS = np.broadcast_to(X, (14, N, FEATURES))


def least_loss():
    design = np.hstack([X, np.ones((N, 1))]).astype("float64")
    found = np.linalg.lstsq(design, Y.astype("float64"), rcond=None)[0]
    rest = Y - design @ found
    return np.mean(np.sum(rest**2, 1)) / (2 * 0.5**2) + np.log(2 * np.pi * 0.25)


def test_linear_regression_is_solved_in_a_few_steps_from_any_damping():
    (params, state), (losses, _, _) = program()(DAMPINGS, XS)
    assert losses.dtype == "float32"
    excess = np.asarray(losses, "float64") - least_loss()
    assert np.all(excess[:, 0] > 1)
    assert np.all(excess[:, -1] < 1e-3 * excess[:, 0])
    assert np.all(np.diff(losses, axis=1) <= 1e-6)
    first = jax.tree.map(lambda leaf: leaf[0], (params, state))
    assert describe(first) == describe((PARAMS, optimizer().init(PARAMS)))


def test_a_bad_batch_among_good_ones_is_as_if_it_had_not_come():
    xs = XS.copy()
    xs[5, 3, 1] = np.nan
    (_, state), (losses, params, gammas) = program()(DAMPINGS, xs)
    (_, without), _ = program()(DAMPINGS, XS)
    assert np.all(state.rejections == without.rejections + 1)
    for leaf in jax.tree.leaves(params):
        assert np.array_equal(leaf[:, 5], leaf[:, 6])
        assert not np.array_equal(leaf[:, 4], leaf[:, 5])
    assert np.array_equal(gammas[:, 5], gammas[:, 6])
    assert np.all(losses[:, -1] < losses[:, 6])


def dense_step(gamma, statistics, fisher, gradient, damping):
    """The K-FAC step with α of the quadratic model, and M there; float64."""
    a, g = (np.asarray(factors[0], "float64") for factors in statistics)
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    left = np.linalg.inv(a + pi * gamma * np.eye(len(a)))
    right = np.linalg.inv(g + gamma / pi * np.eye(len(g)))
    u = (left @ gradient @ right).ravel()
    slope = gradient.ravel() @ u
    square = u @ (fisher + damping * np.eye(len(u))) @ u
    return -slope / square * u, -(slope**2) / (2 * square)


@pytest.mark.parametrize("damping", [1e-2, 30.0])
def test_the_first_trial_takes_the_gamma_of_the_lowest_model(damping, tolerance):
    (_, _), (_, params, gammas) = program()(jnp.full(3, damping, "float32"), XS)
    design = np.hstack([X, np.ones((N, 1))]).astype("float64")  # rows of [w; b]
    fisher = np.kron(design.T @ design / N, np.eye(OUTPUTS)) / 0.5**2
    gradient = -design.T @ Y / N / 0.5**2
    curvature = ng.curvature.KFAC(MODEL, ng.curvature.Sampled(1))
    key = jax.random.split(jax.random.PRNGKey(0))[1]
    statistics = curvature.estimate(PARAMS, X, key=key)
    grid = np.sqrt(damping) * np.array([1, 0.5, 2])
    found = [dense_step(g, statistics, fisher, gradient, damping) for g in grid]
    best = np.argmin([value for _, value in found])
    rtol = tolerance("solve", "float32")
    np.testing.assert_allclose(gammas[0, 1], grid[best], rtol)
    moved = np.vstack([params["w"][0, 1], params["b"][0, 1][None]])
    np.testing.assert_allclose(moved.ravel(), found[best][0], rtol, 1e-5)


def test_hyperparameters_can_be_injected(tolerance):
    tx = optax.inject_hyperparams(optimizer)(damping=1.0, weight_decay=0.0)
    state = tx.init(PARAMS)
    params, after = jax.jit(functools.partial(step, tx))(PARAMS, state)
    assert describe(after) == describe(state)
    _, (_, expected, _) = program()(DAMPINGS, XS)
    for name in params:
        np.testing.assert_allclose(
            params[name], expected[name][1, 1], tolerance("solve", "float32")
        )


@pytest.mark.slow
def test_derivatives_in_the_first_damping_are_differences(tolerance):
    wide = jax.tree.map(lambda leaf: leaf.astype("float64") + 0.1, PARAMS)

    @jax.jit
    @jax.value_and_grad
    def end(damping):
        tx = optimizer(damping)
        params, state = wide, tx.init(wide)
        for _ in range(2):
            params, state = step(tx, params, state, X.astype("float64"))
        return MODEL.loss(params, X, Y)

    h = 1e-5
    difference = (end(0.5 + h)[0] - end(0.5 - h)[0]) / (2 * h)
    assert abs(difference) > 1e-6
    np.testing.assert_allclose(end(0.5)[1], difference, tolerance("differences"))


def test_missing_arguments_are_named():
    tx = optimizer()
    state = jax.eval_shape(tx.init, PARAMS)
    with pytest.raises(ValueError, match="value=loss, value_fn="):
        jax.eval_shape(lambda s: tx.update(PARAMS, s, PARAMS, inputs=X), state)
    with pytest.raises(ValueError, match="inputs=x"):
        jax.eval_shape(lambda s: tx.update(PARAMS, s, PARAMS), state)

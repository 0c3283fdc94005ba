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
from natgrad.transforms import adaptive

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
    """(damping, inputs of each step) -> the last carry; before every step its loss, θ,
    γ and the number of rejections.
    """

    def run(damping, xs):
        tx = optimizer(damping)

        def one(carry, x):
            params, state = carry
            loss = MODEL.loss(params, X, Y)
            seen = loss, params, state.inner.gamma, state.rejections
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
    (params, state), (losses, *_) = program()(DAMPINGS, XS)
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
    _, (losses, params, gammas, rejections) = program()(DAMPINGS, xs)
    assert np.array_equal(rejections[:, 6], rejections[:, 5] + 1)
    for leaf in jax.tree.leaves(params):
        assert np.array_equal(leaf[:, 5], leaf[:, 6])
        assert not np.array_equal(leaf[:, 4], leaf[:, 5])
    assert np.array_equal(gammas[:, 5], gammas[:, 6])
    assert np.all(losses[:, -1] < losses[:, 6])


DESIGN = np.hstack([X, np.ones((N, 1))]).astype("float64")  # rows of [w; b]
FISHER = np.kron(DESIGN.T @ DESIGN / N, np.eye(OUTPUTS)) / 0.5**2


def matrix_of(tree):
    return np.vstack([tree["w"], tree["b"][None]]).astype("float64")


def inverses(statistics, gamma):
    """(A + π γ I)⁻¹ and (G + γ/π I)⁻¹ of the one block."""
    a, g = (np.asarray(factors[0], "float64") for factors in statistics)
    pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
    left = np.linalg.inv(a + pi * gamma * np.eye(len(a)))
    return left, np.linalg.inv(g + gamma / pi * np.eye(len(g)))


def best_step(u, before, gradient, damping):
    """The minimum of M over α u + μ d₀, and M there."""
    span = np.stack([u.ravel(), before.ravel()], 1)
    matrix = FISHER + damping * np.eye(len(span))
    slopes = span.T @ gradient.ravel()
    found = span @ -np.linalg.pinv(span.T @ matrix @ span) @ slopes
    value = gradient.ravel() @ found + found @ matrix @ found / 2
    return found.reshape(u.shape), value


def test_directions_steps_and_gamma_are_those_of_dense_algebra(tolerance):
    """Steepest descent first, then K-FAC with kept inverses, and γ by trials."""
    wide = jax.tree.map(lambda leaf: leaf.astype("float64") + 0.1, PARAMS)
    tx, rtol = optimizer(damping=30.0), tolerance("solve")
    one = jax.jit(lambda params, state: step(tx, params, state, X.astype("float64")))
    params, state, gammas = wide, tx.init(wide), set()
    left, right = np.eye(FEATURES + 1), np.eye(OUTPUTS)
    for count in range(9):
        old, inner = state, state.inner
        residuals = DESIGN @ matrix_of(params) - Y
        gradient, before = (
            DESIGN.T @ residuals / N / 0.5**2,
            matrix_of(inner.step.update),
        )
        after, state = one(params, state)
        expected, _ = best_step(
            left @ gradient @ right, before, gradient, float(old.damping)
        )
        moved = matrix_of(after) - matrix_of(params)
        np.testing.assert_allclose(moved, expected, rtol, rtol * abs(expected).max())
        np.testing.assert_allclose(state.ratio, 1, 1e-6)  # the loss is quadratic
        statistics, gamma = state.inner.solve.statistics, float(inner.gamma)
        if count > 0 and count % TRIALS.period == 0:
            grid = gamma, gamma * TRIALS.factor ** -float(inner.heading)
            values = []
            for each in grid:
                a, g = inverses(statistics, each)
                u = a @ gradient @ g
                values.append(best_step(u, before, gradient, float(old.damping))[1])
            gamma = grid[int(np.argmin(values))]
            kept = float(inner.gamma) == gamma
            assert state.inner.heading == (-1 if kept else 1) * inner.heading
            gammas.add(gamma)
        np.testing.assert_allclose(state.inner.gamma, gamma, rtol)
        if count % REFRESH.inverses == 0 or count % TRIALS.period == 0:
            left, right = inverses(statistics, gamma)
        (pieces,) = state.inner.solve.inverse.pieces
        np.testing.assert_allclose(pieces[0], left, rtol)
        np.testing.assert_allclose(pieces[1], right, rtol)
        params = after
    assert state.rejections == 0
    assert len(gammas) == 2


@pytest.mark.parametrize("bad", ["batch", "step"])
def test_an_undone_step_has_changed_nothing_inside(bad):
    """NaN in the batch, or a loss that is said to have been lower than it was."""
    tx, spoiled = optimizer(), X.copy()
    spoiled[2, 1] = np.nan

    @jax.jit
    def run(params, state, x, less):
        value, grads = jax.value_and_grad(MODEL.loss)(params, x, Y)
        batch = {"inputs": x, "targets": Y, "value_fn": MODEL.loss}
        return tx.update(grads, state, params, value=value - less, **batch)

    updates, state = run(PARAMS, tx.init(PARAMS), X, 0.0)
    params = optax.apply_updates(PARAMS, updates)
    x, less = (spoiled, 0.0) if bad == "batch" else (X, 1e3)
    updates, after = run(params, state, x, less)
    assert after.rejected
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
    both = (jax.tree.leaves(each) for each in (after.inner, state.inner))
    for new, old in zip(*both, strict=True):
        assert np.array_equal(new, old)
    assert not run(params, state, X, 0.0)[1].rejected


def test_statistics_that_are_handed_over_enter_the_average():
    curvature = ng.curvature.KFAC(MODEL)
    tx = ng.scale_by_factored_curvature(curvature, refresh=ng.Refresh(5, 5), decay=0.5)
    given = [curvature.estimate(PARAMS, scale * X) for scale in (1, 2)]

    @jax.jit
    def run(state, statistics):
        gradient = jax.grad(MODEL.loss)(PARAMS, X, Y)
        return tx.update(gradient, state, PARAMS, inputs=X, statistics=statistics)[1]

    state = run(run(tx.init(PARAMS), given[0]), given[1])
    assert state.solve.estimates == 2
    for kept, first, second in zip(
        *map(jax.tree.leaves, (state.solve.statistics, *given)), strict=True
    ):
        np.testing.assert_allclose(kept, (first + 2 * second) / 3, 1e-5, 1e-7)


def test_what_follows_it_in_a_chain_is_judged_with_it():
    """It was asked about another step than the one that is returned."""
    factored = ng.scale_by_factored_curvature(ng.curvature.KFAC(MODEL), damping=1.0)
    tx = ng.levenberg_marquardt(optax.chain(factored, optax.scale(100.0)), MODEL)
    state = tx.init(PARAMS)
    params, after = jax.jit(functools.partial(step, tx))(PARAMS, state)
    assert after.rejected
    assert all(np.array_equal(params[name], PARAMS[name]) for name in PARAMS)
    both = (jax.tree.leaves(each) for each in (after.inner, state.inner))
    for new, old in zip(*both, strict=True):
        assert np.array_equal(new, old)


def test_hyperparameters_can_be_injected(tolerance):
    tx = optax.inject_hyperparams(optimizer)(damping=1.0, weight_decay=0.0)
    state = tx.init(PARAMS)
    params, after = jax.jit(functools.partial(step, tx))(PARAMS, state)
    assert describe(after) == describe(state)
    _, (_, expected, *_) = program()(DAMPINGS, XS)
    for name in params:
        np.testing.assert_allclose(
            params[name], expected[name][1, 1], tolerance("solve", "float32")
        )


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


def test_parameters_of_low_precision_train():
    """In float16 the first gradient over γ² = 1e-6 overflowed, in every step."""
    low = jax.tree.map(lambda leaf: leaf.astype("float16"), PARAMS)
    tx = ng.kfac_adaptive(MODEL)
    x = X.astype("float16")
    one = lambda carry, _: (step(tx, *carry, x), MODEL.loss(carry[0], x, Y))
    _, losses = jax.jit(lambda c: jax.lax.scan(one, c, None, length=6))(
        (low, tx.init(low))
    )
    assert losses[-1] - least_loss() < 0.05 * (losses[0] - least_loss())


def test_missing_arguments_are_named():
    tx = optimizer()
    state = jax.eval_shape(tx.init, PARAMS)
    with pytest.raises(ValueError, match="value=loss, value_fn="):
        jax.eval_shape(lambda s: tx.update(PARAMS, s, PARAMS, inputs=X), state)
    with pytest.raises(ValueError, match="inputs=x"):
        jax.eval_shape(lambda s: tx.update(PARAMS, s, PARAMS), state)


def test_a_curvature_without_kronecker_factors_is_named():
    tx = ng.scale_by_factored_curvature(ng.curvature.Dense(MODEL))
    with pytest.raises(ValueError, match=r"inverts Kronecker factors.*got Dense"):
        tx.init(PARAMS)

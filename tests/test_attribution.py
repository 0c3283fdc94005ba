"""Influence, metagradients and retraining against closed forms and differences."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from bad_input import refuses

import natgrad as ng
from natgrad import attribution

N, Q = 9, 3


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


# --- ridge regression: everything is known

RIDGE = 0.3
X, Y, X2, Y2 = normal(0, N, 4), normal(1, N), normal(2, Q, 4), normal(3, Q)
linear = ng.Model(lambda p, x: x @ p["w"], ng.families.NormalMean())


def ridge(weights):
    """argmin (1/N) Σ w_n ½ (y_n − x_nᵀθ)² + ½ η |θ|²."""
    h = X.T @ (weights[:, None] * X) / N + RIDGE * jnp.eye(4)
    return {"w": jnp.linalg.solve(h, X.T @ (weights * Y) / N)}


def losses(params):
    return -linear.log_prob(params, X2, Y2)


def test_influence_is_the_infinitesimal_jackknife_of_ridge_regression(tolerance):
    params = ridge(jnp.ones(N))
    gradients = [(x @ params["w"] - y)[:, None] * x for x, y in ((X2, Y2), (X, Y))]
    h = np.array(X.T @ X / N + RIDGE * np.eye(4))
    closed = np.array(gradients[0]) @ np.linalg.solve(h, np.array(gradients[1]).T) / N
    metric = ng.curvature.Dense(linear).at(params, X)
    batches = ((X[part], Y[part]) for part in (slice(6), slice(6, N)))
    found = attribution.influence(metric, linear, params, batches, (X2, Y2), RIDGE)
    np.testing.assert_allclose(found, closed, rtol=tolerance("oracle"))
    other = {"w": jnp.ones((4, 2))}
    with refuses("params must be shaped like", "(4,)", "(4, 2)"):
        attribution.influence(metric, linear, other, (X, Y), (X2, Y2), RIDGE)

    slopes = jax.jit(lambda w: attribution.metagradient(ridge, losses, w))(jnp.ones(N))
    np.testing.assert_allclose(slopes, closed, rtol=tolerance("oracle"))
    small = 1e-5 * jnp.eye(N)
    ends = [attribution.retrained(ridge, losses, 1 + e, 4) for e in (-small, small)]
    slopes = (ends[0] - ends[1]) / 2e-5
    np.testing.assert_allclose(slopes, closed, rtol=tolerance("differences"))


# --- layers: rows against gradients that are written out


def mlp(params, x):
    return jnp.tanh(x @ params["u"] + params["b"][None]) @ params["v"]


def conv(params, x):
    dims = ("NHWC", "HWIO", "NHWC")
    z = jax.lax.conv_general_dilated(
        x, params["k"], (1, 1), "VALID", dimension_numbers=dims
    )
    return jnp.mean(jnp.tanh(z + params["b"]), axis=(1, 2)) @ params["v"]


def sequence(params, x):
    h = params["e"][x]
    return jnp.tanh(h @ params["u"]) @ params["v"]


CASES = {
    "mlp": (
        mlp,
        {"u": normal(4, 5, 6), "b": normal(5, 6), "v": normal(6, 6, 3)},
        [normal(7, n, 5) for n in (N, Q)],
    ),
    "conv": (
        conv,
        {"k": normal(4, 2, 2, 4, 9), "b": normal(5, 1, 1, 1, 9), "v": normal(6, 9, 3)},
        [normal(7, n, 3, 3, 4) for n in (N, Q)],
    ),
    "sequence": (
        sequence,
        {"e": normal(4, 7, 6), "u": normal(5, 6, 8), "v": normal(6, 8, 3)},
        [np.random.default_rng(n).integers(0, 7, (n, 2)) for n in (N, Q)],
    ),
}
KFAC, EKFAC = ng.curvature.KFAC, ng.curvature.EKFAC
Reduced = functools.partial(KFAC, sharing=ng.layers.Reduce())
FACTORED = ng.kronecker.FactoredTikhonov()
FORMS = {
    "mlp": [(KFAC, FACTORED), (KFAC, None), (EKFAC, None)],
    "conv": [(KFAC, FACTORED), (EKFAC, None)],
    "sequence": [(Reduced, FACTORED), (KFAC, FACTORED)],
}


def weights_of(x):
    return 1.5 + jnp.sin(jnp.sum(x, axis=1))


@pytest.mark.parametrize("case", CASES)
def test_rows_give_what_written_out_gradients_give(case):
    apply, params, inputs = CASES[case]
    weights = weights_of if case == "mlp" else None
    model = ng.Model(apply, ng.families.Categorical(), weights=weights)
    shapes = [apply(params, x).shape[:-1] for x in inputs]
    targets = [np.random.default_rng(1).integers(0, 3, shape) for shape in shapes]
    train, query = zip(inputs, targets, strict=True)
    ravel = ng.tree.Layout.of(params).ravel
    total = N if weights is None else jnp.sum(weights(train[0]))

    def pairs(params):
        written = [
            jax.jacrev(lambda p, d=d: -model.log_prob(p, *d))(params)
            for d in (query, train)
        ]
        for curvature, solver in FORMS[case]:
            metric = curvature(model).at(params, train[0])
            by_rows = attribution.influence(
                metric, model, params, train, query, 0.1, solver=solver
            )
            solve = solver or type(metric).solve
            solved = jax.vmap(lambda v, f=solve, m=metric: f(m, v, 0.1))(written[0])
            yield by_rows, ravel(solved, 1) @ ravel(written[1], 1).T / total

    for found, expected in jax.jit(lambda p: list(pairs(p)))(params):
        scale = np.max(np.abs(expected))
        np.testing.assert_allclose(found / scale, expected / scale, atol=1e-10)


# --- training


def moons(seed, n):
    """Two bent clusters, so that no training separates them at once."""
    rng = np.random.default_rng(seed)
    t, side = np.pi * rng.random(n), rng.integers(0, 2, n)
    x = np.stack([np.cos(t) + side, np.sin(t) * (1 - 2 * side)], axis=1)
    return jnp.asarray(x + 0.3 * rng.standard_normal((n, 2))), jnp.asarray(side)


TRAIN, QUERY = moons(0, N), moons(1, Q)
START = {"u": normal(8, 2, 4), "b": normal(9, 4), "v": 0.3 * normal(10, 4, 2)}
network = ng.Model(mlp, ng.families.Categorical())


def query_losses(params):
    return -network.log_prob(params, *QUERY)


def exact_kfac(model):
    curvature = ng.curvature.KFAC(model)
    return optax.chain(ng.scale_by_curvature(curvature, damping=0.1), optax.scale(-0.3))


def natural(model):
    return ng.natural_gradient(0.3, model, damping=0.1)


@pytest.mark.parametrize("optimizer", [natural, exact_kfac])
def test_metagradients_are_differences_of_whole_trainings(optimizer, tolerance):
    trained = attribution.training(optimizer, network, START, TRAIN, 4)
    weights = 1 + 0.1 * normal(11, N)
    direction, h = normal(12, N), 1e-5

    @jax.jit
    def slopes_and_losses(weights):
        slopes = attribution.metagradient(trained, query_losses, weights) @ direction
        ends = [weights + s * h * direction for s in (-1, 1)]
        return slopes, jax.lax.map(lambda w: query_losses(trained(w)), jnp.stack(ends))

    slopes, (below, above) = slopes_and_losses(weights)
    scale = np.max(np.abs(slopes))
    difference = (below - above) / (2 * h)
    np.testing.assert_allclose(
        slopes / scale, difference / scale, atol=tolerance("differences")
    )


def test_retraining_with_weights_of_0_is_training_without_these_examples(tolerance):
    left_out = np.array([1, 4])
    weights = jnp.ones((1, N)).at[0, left_out].set(0)

    def sgd(_):
        return optax.sgd(0.5, momentum=0.9)

    trained = attribution.training(sgd, network, START, TRAIN, 5)
    found = attribution.retrained(trained, query_losses, weights)[:, 0]

    def by_hand(keep):
        x, y = (a[keep] for a in TRAIN)
        loss = lambda p: network.loss(p, x, y) * len(keep) / N
        p, slope = START, jax.jit(jax.grad(loss))
        v = {name: 0 * leaf for name, leaf in START.items()}
        for _ in range(5):
            g = slope(p)
            v = {name: 0.9 * v[name] + g[name] for name in v}
            p = {name: p[name] - 0.5 * v[name] for name in p}
        return query_losses(p)

    kept = np.delete(np.arange(N), left_out)
    expected = by_hand(kept) - by_hand(np.arange(N))
    np.testing.assert_allclose(found, expected, rtol=tolerance("oracle"))


def test_weights_of_the_model_are_multiplied_by_those_of_the_data(tolerance):
    def one_step(model):
        metric = ng.scale_by_curvature(ng.curvature.Dense(model), damping=0.1)
        return optax.chain(metric, optax.scale(-1))

    own = weights_of(TRAIN[0])
    model = ng.Model(mlp, ng.families.Categorical(), weights=weights_of)
    both = attribution.training(one_step, model, START, TRAIN, 1)(jnp.full(N, 0.9))
    plain = attribution.training(one_step, network, START, TRAIN, 1)
    of_data = plain(0.9 * own * N / jnp.sum(own))
    first, second = (ng.tree.Layout.of(START).ravel(p) for p in (both, of_data))
    np.testing.assert_allclose(first, second, rtol=tolerance("solve"))


def test_the_rank_correlation_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 4, 30))
    b[0] = np.exp(a[0])
    a[1], b[1:3] = np.round(a[1]), np.round(b[1:3])
    found = jax.jit(attribution.rank_correlation)(a, b)
    expected = [
        scipy.stats.spearmanr(*pair).statistic for pair in zip(a, b, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-14)
    assert np.isnan(attribution.rank_correlation(np.ones(3), np.arange(3.0)))
    for shapes in ((3,), (4,)), ((1,), (1,)), ((), ()):
        with refuses("one shape", *map(str, shapes)):
            attribution.rank_correlation(*map(np.ones, shapes))

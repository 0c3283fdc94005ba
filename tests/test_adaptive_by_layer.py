"""Damping by layer in what adapts itself, against dense algebra over several steps."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import ravel, relative_error

import natgrad as ng
from natgrad.transforms import adaptive

N, FEATURES, HIDDEN, OUTPUTS, SCALE, DECAY = 40, 3, 3, 2, 0.5, 0.05
RNG = np.random.default_rng(0)
X = RNG.normal(size=(N, FEATURES))
Y = np.tanh(X @ RNG.normal(size=(FEATURES, HIDDEN))) @ RNG.normal(size=(HIDDEN, 2)) + 1
MODEL = ng.Model(
    lambda p, x: jnp.tanh(x @ p["a"]["w"] + p["a"]["b"][None]) @ p["c"],
    ng.families.NormalMean(SCALE),
    example_inputs=X[:1],
)
PARAMS = {
    "a": {"b": np.zeros(HIDDEN), "w": RNG.normal(size=(FEATURES, HIDDEN)) / 2},
    "c": RNG.normal(size=(HIDDEN, OUTPUTS)),
}
PARAMS = jax.tree.map(jnp.asarray, PARAMS)
SIZES = [HIDDEN + FEATURES * HIDDEN, HIDDEN * OUTPUTS]  # of both layers
FIRST = np.arange(sum(SIZES)) < SIZES[0]
CUTS = np.cumsum([HIDDEN, FEATURES * HIDDEN])  # of a/b, a/w, c


def loss(params, inputs=X, targets=Y):
    return MODEL.loss(params, inputs, targets) + DECAY / 2 * ng.tree.inner(
        params, params
    )


@jax.jit
def dense_of(params):
    """(loss, its gradient, F of the model) from the Jacobian of the outputs."""
    z, tree = MODEL.apply(params, X), jax.jacobian(MODEL.apply)(params, X)
    rows = [leaf.reshape(N * OUTPUTS, -1) for leaf in jax.tree.leaves(tree)]
    jacobian = jnp.concatenate(rows, 1)
    vector = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(params)])
    weight = 1 / N / SCALE**2
    gradient = weight * jacobian.T @ (z - Y).ravel() + DECAY * vector
    value = weight / 2 * jnp.sum((z - Y) ** 2) + DECAY / 2 * vector @ vector
    constant = OUTPUTS / 2 * np.log(2 * np.pi * SCALE**2)
    return value + constant, gradient, weight * jacobian.T @ jacobian


def spread(values):
    """The diagonal of Λ from the λ of both layers."""
    return np.repeat(values, SIZES)


def least(span, gradient, matrix):
    """The minimum of ⟨g, d⟩ + ½ ⟨d, matrix d⟩ over a span, and its value."""
    step = span @ (-np.linalg.pinv(span.T @ matrix @ span) @ (span.T @ gradient))
    return step, gradient @ step + step @ matrix @ step / 2


def by_group(*vectors):
    """The parts of vectors in both layers as columns."""
    parts = [v * inside for inside in (FIRST, ~FIRST) for v in vectors]
    return np.stack(parts, 1)


def nielsen(damping, ratio):
    return damping * np.clip(1 - (2 * ratio - 1) ** 3, 1 / 3, 2)


BY_LAYER = np.array([0.02, 0.6])
# What is given, and Λ of both layers from the mean of the diagonal of each block.
DAMPINGS = {
    "tree": ({"a": BY_LAYER[0], "c": BY_LAYER[1]}, lambda means: BY_LAYER),
    "relative": (ng.Relative(0.3), lambda means: 0.3 * means),
}


def factored(gradient, statistics, gammas):
    """(A + π γ I)⁻¹ V (G + γ/π I)⁻¹ of both layers."""
    b, w, c = np.split(gradient, CUTS)
    matrices = [np.vstack([w.reshape(FEATURES, -1), b]), c.reshape(HIDDEN, -1)]
    found = []
    for matrix, (a, g), gamma in zip(matrices, statistics, gammas, strict=True):
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        a = a + pi * gamma * np.eye(len(a))
        g = g + gamma / pi * np.eye(len(g))
        found.append(np.linalg.solve(a, matrix) @ np.linalg.inv(g))
    first, second = found
    return np.concatenate([first[-1], first[:-1].ravel(), second.ravel()])


def block_means(statistics):
    """tr (A ⊗ G) / P_b."""
    return np.array(
        [np.trace(a) * np.trace(g) / (len(a) * len(g)) for a, g in statistics]
    )


@pytest.mark.parametrize("kind", ["tree", "relative"])
def test_adaptive_kfac_is_that_of_dense_algebra(kind):
    """Directions, steps, M, ρ, λ and γ of each layer; inverses in every third step."""
    given, of_means = DAMPINGS[kind]
    trials = adaptive.Trials(period=2, factor=0.5)
    tx = ng.kfac_adaptive(
        MODEL,
        damping=given,
        weight_decay=DECAY,
        refresh=ng.Refresh(inverses=3),
        trials=trials,
        rule=adaptive.Nielsen(),
    )

    @jax.jit
    def one(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        batch = {"inputs": X, "targets": Y, "value": value, "value_fn": loss}
        return tx.update(grads, state, params, **batch)

    params, state, seen, gammas = PARAMS, tx.init(PARAMS), None, set()
    mean = lambda values: np.mean(spread(values))
    for count in range(6):
        old = state
        value, gradient, fisher = map(np.asarray, dense_of(params))
        before = ravel(old.inner.step.update)
        damping = max(float(old.damping), 1e-3 * abs(value))
        statistics = pairs(old.inner.solve.statistics)
        own = damping * of_means(block_means(statistics))
        u = gradient if seen is None else factored(gradient, *seen)
        undamped = fisher + DECAY * np.eye(len(fisher))
        damped = undamped + np.diag(spread(own))
        expected, _ = least(by_group(u, before), gradient, damped)
        updates, state = one(params, state)
        assert relative_error(ravel(updates), expected) < 1e-9
        params = optax.apply_updates(params, updates)
        predicted = -gradient @ expected - expected @ undamped @ expected / 2
        ratio = (value - dense_of(params)[0]) / predicted
        assert abs(state.ratio - ratio) < 1e-9
        assert relative_error(state.damping, nielsen(damping, ratio)) < 1e-8
        # What the next inverses are made with.
        after = pairs(state.inner.solve.statistics)
        total = damping * of_means(block_means(after)) + DECAY
        gamma = float(old.inner.gamma)
        if count == 0:
            gamma = np.sqrt(mean(total))
        else:
            health = state.inner.solve.health
            assert relative_error(health.damping, gamma**2) < 1e-12
        shares = np.sqrt(total / mean(total))
        tried = count > 0 and count % trials.period == 0
        if tried:
            other = gamma * trials.factor ** -float(old.inner.heading)
            values = []
            for each in (gamma, other):
                span = by_group(factored(gradient, after, each * shares), before)
                values.append(least(span, gradient, damped)[1])
            gamma = (gamma, other)[int(np.argmin(values))]
            gammas.add(gamma)
        assert relative_error(state.inner.gamma, gamma) < 1e-9
        if tried or count % 3 == 0:
            seen = after, gamma * shares
    assert state.rejections == 0
    assert len(gammas) == 2


def pairs(statistics):
    """(A, G) of both layers, in float64."""
    return [list(map(np.asarray, pair)) for pair in zip(*statistics, strict=True)]


def test_levenberg_marquardt_damps_by_multiples_of_what_it_is_given():
    """−(F + λ Λ)⁻¹ g with λ by ρ; so with Λ inside, and a schedule of it."""
    by_path = lambda count: ng.ByPath({"": BY_LAYER[0], "c": BY_LAYER[1] / (1 + count)})

    def marquardt(outer, inner):
        inner = ng.scale_by_curvature(ng.curvature.Dense(MODEL), damping=inner)
        chain = optax.chain(inner, optax.scale(-1.0))
        rule = adaptive.Nielsen()
        return ng.levenberg_marquardt(chain, MODEL, damping=outer, rule=rule)

    outside, inside = marquardt(by_path, 7.0), marquardt(1.0, by_path)

    @jax.jit
    def one(params, *states):
        value, grads = jax.value_and_grad(MODEL.loss)(params, X, Y)
        batch = {"inputs": X, "targets": Y, "value": value, "value_fn": MODEL.loss}
        both = zip((outside, inside), states, strict=True)
        found = [tx.update(grads, state, params, **batch) for tx, state in both]
        return found, ravel(grads)

    params, states = PARAMS, (outside.init(PARAMS), inside.init(PARAMS))
    for count in range(4):
        old = states[0]
        fisher = np.asarray(dense_of(params)[2])
        found, gradient = one(params, *states)
        own = spread(float(old.damping) * BY_LAYER / [1, 1 + count])
        expected = -np.linalg.solve(fisher + np.diag(own), gradient)
        for updates, state in found:
            assert not state.rejected
            assert relative_error(ravel(updates), expected) < 1e-9
            following = nielsen(float(old.damping), float(state.ratio))
            assert relative_error(state.damping, following) < 1e-12
        states = [state for _, state in found]
        params = optax.apply_updates(params, found[0][0])
    assert old.damping < 0.5


@pytest.mark.parametrize("kind", ["tree", "relative", "scale_invariant"])
def test_the_quadratic_model_is_damped_by_layer(kind):
    """α and μ of two groups; Relative takes all of F as one block."""
    given = {"scale_invariant": ng.ScaleInvariant(0.2)}
    given |= {name: each for name, (each, _) in DAMPINGS.items()}
    tx = ng.scale_by_quadratic_model(
        MODEL, damping=given[kind], weight_decay=DECAY, groups={"a": 0, "c": 1}
    )

    @jax.jit
    def one(params, state):
        grads = jax.grad(loss)(params)
        u = jax.tree.map(jnp.arctan, grads)
        batch = {"inputs": X, "grad": grads}
        return *tx.update(u, state, params, **batch), *map(ravel, (u, grads))

    params, state = PARAMS, tx.init(PARAMS)
    for _ in range(3):
        before, fisher = ravel(state.update), np.asarray(dense_of(params)[2])
        updates, state, u, gradient = one(params, state)
        own = {
            "tree": spread(BY_LAYER),
            "relative": np.full(len(u), 0.3 * np.trace(fisher) / len(u)),
            "scale_invariant": 0.2 * np.diag(fisher),
        }[kind]
        matrix = fisher + np.diag(own + DECAY)
        expected, value = least(by_group(u, before), gradient, matrix)
        assert relative_error(ravel(updates), expected) < 1e-9
        assert relative_error(state.predicted_decrease, -value) < 1e-9
        params = optax.apply_updates(params, updates)


def test_equal_numbers_by_layer_are_multiplied_as_different_ones_are():
    """They were taken for one number, which another one replaces."""
    curvature, equal = ng.curvature.Diagonal(MODEL), {"a": 0.1, "c": 0.1}
    tx = ng.scale_by_curvature(curvature, damping=equal)

    @jax.jit
    def one(params):
        state = tx.init(params)
        updates, _ = tx.update(params, state, params, inputs=X, damping=3.0)
        return ravel(updates), curvature.at(params, X).entries

    updates, entries = one(PARAMS)
    assert relative_error(updates, ravel(PARAMS) / (entries + 0.3)) < 1e-12

"""A KL trust region holds for the divergence itself, not for a model of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng
from natgrad.curvature import KFAC, Dense, Gram, MatrixFree

RADIUS = 0.01
X = np.random.default_rng(0).normal(size=(24, 3))
FAMILIES = {
    "categorical": (ng.families.Categorical(), 3),
    "gaussian_policy": (ng.families.NormalMeanLogScale(), 2),
    "poisson": (ng.families.Poisson(), 1),
    "mean": (ng.families.NormalMean(0.5), 2),
}
CURVATURES = {"dense": Dense, "gram": Gram, "matrix_free": MatrixFree, "kfac": KFAC}


@functools.cache
def policy(name):
    family, outputs = FAMILIES[name]

    def apply(params, x):
        z = jnp.tanh(x @ params["w"]) @ params["v"]
        return z[:, 0] if name == "poisson" else z

    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(3, 4)), "v": rng.normal(size=(4, outputs))}
    model = ng.Model(apply, family, example_inputs=X[:1])
    return model, jax.tree.map(jnp.asarray, params)


def gradients(params, count):
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=(count, *p.shape))), params
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_the_measured_divergence_of_any_update_is_bounded(name):
    """In directions at random, where the quadratic model is wrong by large factors."""
    model, params = policy(name)
    tx = ng.scale_by_kl_trust_region(model, RADIUS)

    def step(rate, direction):
        whole = jax.tree.map(lambda d: -rate * d, direction)
        forms = ng.adaptive.fisher_forms(model, params, X)
        moved, state = tx.update(whole, tx.init(params), params, inputs=X)
        kl = lambda u: model.kl(params, optax.apply_updates(params, u), X)
        square = forms((whole,))[0, 0] / 2
        shrink = jnp.minimum(1, jnp.sqrt(RADIUS / square))
        old = jax.tree.map(lambda u: shrink * u, whole)
        return kl(moved), kl(old), moved, old, state

    steps = jax.jit(jax.vmap(step, (None, 0)))
    for rate in (1e-3, 1.0, 1e4):
        found, before, moved, old, state = steps(rate, gradients(params, 6))
        assert np.all(found <= RADIUS * (1 + 1e-3))
        np.testing.assert_allclose(state.divergence, found, 1e-9, 1e-12)
        held = before <= RADIUS
        for new, as_before in zip(*map(jax.tree.leaves, (moved, old)), strict=True):
            np.testing.assert_allclose(new[held], as_before[held], 1e-12)
        if rate > 1:  # the quadratic model was wrong, and no step is needlessly short
            assert np.any(before > 1.005 * RADIUS)
            assert np.all(found > 0.8 * RADIUS)


def test_an_update_without_a_divergence_is_not_applied():
    """Of a batch with NaN; and what is no number stays one for others to see."""
    model, params = policy("mean")
    tx = ng.scale_by_kl_trust_region(model, RADIUS)
    update = jax.jit(lambda u, x: tx.update(u, tx.init(params), params, inputs=x)[0])
    moved = update(params, np.where(np.isclose(X, X[1, 1]), np.nan, X))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(moved))
    spoiled = jax.tree.map(lambda u: u * jnp.nan, params)
    assert all(np.all(np.isnan(u)) for u in jax.tree.leaves(update(spoiled, X)))


@pytest.mark.parametrize(
    "divergence",
    [
        lambda t: 50 * t**2,
        lambda t: jnp.minimum(300 * t, 5e4 * t**2),  # of probabilities that saturate
        lambda t: 1e6 * t**4,
        lambda t: jnp.where(t > 1e-3, jnp.inf, 1e6 * t**2),
        lambda t: jnp.expm1(1e3 * t) / 1e3,
    ],
)
def test_the_length_is_within_the_radius_and_not_much_shorter(divergence):
    length, found = jax.jit(ng.damping.longest_within, static_argnums=0)(
        divergence, jnp.array(RADIUS)
    )
    np.testing.assert_allclose(found, divergence(length), rtol=1e-12)
    assert RADIUS / 4 <= found <= RADIUS * 1.001


def test_lengths_have_derivatives_both_ways(tolerance):
    model, params = policy("gaussian_policy")
    tx = ng.scale_by_kl_trust_region(model, RADIUS)

    @jax.jit
    def moved(rate):
        whole = jax.tree.map(lambda p: -(rate**2) * jnp.cos(3 * p), params)
        short, _ = tx.update(whole, tx.init(params), params, inputs=X)
        return sum(jnp.sum(u**2) for u in jax.tree.leaves(short))

    both = lambda rate: jnp.stack(
        [jax.grad(moved)(rate), jax.jvp(moved, (rate,), (1.0,))[1]]
    )
    for rate in (0.01, 30.0):
        h = 1e-5 * rate
        difference = (moved(rate + h) - moved(rate - h)) / (2 * h)
        scale = moved(rate) / rate
        np.testing.assert_allclose(
            jax.jit(both)(rate), difference, atol=tolerance("differences") * scale
        )


@pytest.mark.parametrize("name", CURVATURES)
def test_the_bound_of_a_curvature_holds_for_what_is_measured(name):
    model, params = policy("gaussian_policy")
    rate = 1e3
    trust = ng.damping.TrustRegion(RADIUS, rate)

    @jax.jit
    @jax.vmap
    def step(gradient):
        tx = optax.chain(
            ng.scale_by_curvature(
                CURVATURES[name](model), damping=1e-6, trust_region=trust
            ),
            optax.scale(-rate),
        )
        moved, _ = tx.update(gradient, tx.init(params), params, inputs=X)
        return model.kl(params, optax.apply_updates(params, moved), X)

    found = step(gradients(params, 4))
    assert np.all(found <= RADIUS * (1 + 1e-3))
    assert np.all(found > 0.1 * RADIUS)


def test_given_statistics_and_the_batch_the_divergence_is_measured_too():
    """Statistics from elsewhere change nothing where the batch comes too."""
    model, params = policy("gaussian_policy")
    curvature = Dense(model)
    trust = ng.damping.TrustRegion(RADIUS, 1e3)
    tx = ng.scale_by_curvature(curvature, damping=1e-6, trust_region=trust)
    gradient = jax.tree.map(lambda leaf: leaf[0], gradients(params, 1))
    known = {"statistics": curvature.estimate(params, X)}

    @functools.partial(jax.jit, static_argnums=1)
    def divergence(known, with_batch):
        batch = {"inputs": X} if with_batch else {}
        step, _ = tx.update(gradient, tx.init(params), params, **batch, **known)
        moved = jax.tree.map(lambda p, d: p - 1e3 * d, params, step)
        return model.kl(params, moved, X)

    assert 0.5 * RADIUS < divergence({}, True) <= RADIUS * (1 + 1e-3)
    assert 0.5 * RADIUS < divergence(known, True) <= RADIUS * (1 + 1e-3)
    # The quadratic model alone decides without the batch, and allows another length.
    assert abs(divergence(known, False) / RADIUS - 1) > 1e-2

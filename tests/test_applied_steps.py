"""What an optimizer applies: momentum and weight decay, inside the trust region."""

from __future__ import annotations

import functools
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng

X = np.random.default_rng(0).normal(size=(6, 4, 3))  # sequences of four positions
Y = np.arange(24).reshape(6, 4) % 2
RATED = [
    ng.natural_gradient,
    ng.gram,
    ng.spring,
    ng.matrix_free,
    ng.kfac,
    ng.ekfac,
    ng.diagonal_fisher,
    ng.empirical_fisher,
]
RATE, BETA, OMEGA, RADIUS = 2.0, 0.8, 0.3, 1e-2
name_of = lambda alias: alias.__name__


def apply(params, x):
    return jnp.tanh(x["x"] @ params["w"]) @ params["v"]


@functools.cache
def problem(masked=False):
    rng = np.random.default_rng(1)
    params = {"w": rng.normal(size=(3, 2)), "v": rng.normal(size=(2, 2))}
    inputs = {"x": X, "mask": np.arange(4) < np.array([[4, 3, 3, 2, 1, 1]]).T}
    weights = (lambda inputs: 1.0 * inputs["mask"]) if masked else None
    model = ng.Model(
        apply,
        ng.families.Categorical(),
        example_inputs=jax.tree.map(lambda x: x[:1], inputs),
        weights=weights,
    )
    return model, jax.tree.map(jnp.asarray, params), inputs


def steps(tx, count=4, masked=False):
    """(divergences, updates) of some steps along the training path, and their state."""
    model, params, inputs = problem(masked)

    @jax.jit
    def step(params, state):
        grads = jax.grad(model.loss)(params, inputs, Y)
        updates, state = tx.update(grads, state, params, inputs=inputs, targets=Y)
        new = optax.apply_updates(params, updates)
        return new, state, updates, model.kl(params, new, inputs)

    state, found = jax.jit(tx.init)(params), []
    for _ in range(count):
        params, state, updates, divergence = step(params, state)
        found.append((float(divergence), updates))
    return *zip(*found, strict=True), state


@pytest.mark.parametrize("alias", RATED, ids=name_of)
def test_what_is_applied_is_within_the_radius(alias):
    """Four labels an example; with a rate that is too large by far."""
    own = () if alias is ng.spring else ("momentum",)
    tx = alias(1e3, problem()[0], trust_region=RADIUS, **dict.fromkeys(own, 0.9))
    divergences, _, _ = steps(tx)
    assert np.all(np.array(divergences) <= 4 * RADIUS * (1 + 2e-3))
    assert np.all(np.array(divergences) > RADIUS / 2)


@pytest.mark.parametrize("alias", RATED, ids=name_of)
def test_as_it_comes_the_radius_moves_within_its_bounds(alias):
    rule = ng.damping.AdaptiveRadius()
    divergences, _, state = steps(alias(1e3, problem()[0]))
    assert np.all(np.array(divergences) <= 4 * rule.most * (1 + 2e-3))
    radius = optax.tree.get(state, "per_label")
    assert rule.least <= radius <= rule.most
    assert radius != rule.initial
    for name in ("scale", "predicted_decrease", "skipped", "reason"):
        optax.tree.get(state, name)  # no other part of the state has that name


def test_a_masked_position_is_no_label():
    applied = {"trust_region": RADIUS, "momentum": 0.9, "weight_decay": 1e-2}
    tx = ng.natural_gradient(1e3, problem(True)[0], **applied)
    divergences, _, _ = steps(tx, masked=True)
    labels = 14 / 6  # of 24 positions in 6 sequences
    assert np.all(np.array(divergences) <= labels * RADIUS * (1 + 2e-3))
    assert max(divergences) > 0.9 * labels * RADIUS
    model, params, inputs = problem(True)
    assert model.labels_per_example(params, inputs) == pytest.approx(labels, rel=1e-6)


@pytest.mark.parametrize("radius", [None, 1e9], ids=["none", "wide"])
def test_unbounded_steps_are_those_of_momentum_and_decoupled_decay(radius):
    """v = d + β v; the step is −η (v + ω θ): optax's trace, then a decay behind it."""
    model = problem()[0]
    tx = ng.natural_gradient(
        0.1,
        model,
        decay=0.0,
        trust_region=radius,
        momentum=BETA,
        weight_decay=OMEGA,
    )
    by_optax = optax.chain(
        ng.scale_by_curvature(ng.curvature.Dense(model)),
        optax.trace(BETA),
        optax.add_decayed_weights(OMEGA),
        optax.scale_by_learning_rate(0.1),
    )
    _, updates, _ = steps(tx)
    _, expected, _ = steps(by_optax)
    chex.assert_trees_all_close(updates, expected, rtol=1e-9, atol=1e-12)


def test_a_shortened_step_is_remembered_as_short_as_it_was():
    model = problem()[0]
    tx = ng.natural_gradient(RATE, model, momentum=BETA, decay=0.0)
    plain = ng.scale_by_curvature(ng.curvature.Dense(model))
    params = problem()[1]
    before = jax.tree.map(jnp.zeros_like, params)

    @jax.jit
    def both(params, state, before):
        grads = jax.grad(model.loss)(params, problem()[2], Y)
        extra = {"inputs": problem()[2]}
        updates, state = tx.update(grads, state, params, **extra)
        d, _ = plain.update(grads, plain.init(params), params, **extra)
        whole = jax.tree.map(lambda d, v: -RATE * d + BETA * v, d, before)
        return updates, state, whole

    state = tx.init(params)
    for _ in range(3):
        updates, state, whole = both(params, state, before)
        scale = state[0].health.scale
        assert 0 < scale < 1
        expected = jax.tree.map(lambda u, scale=scale: scale * u, whole)
        chex.assert_trees_all_close(updates, expected, rtol=1e-9)
        params, before = optax.apply_updates(params, updates), updates


def test_a_skipped_step_changes_neither_parameters_nor_the_memory():
    model, params, inputs = problem()
    tx = ng.natural_gradient(RATE, model, momentum=BETA, weight_decay=OMEGA)
    update = jax.jit(lambda g, s: tx.update(g, s, params, inputs=inputs))
    _, state = update(params, tx.init(params))
    updates, after = update(jax.tree.map(lambda g: jnp.nan * g, params), state)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(updates))
    assert after[0].health.skipped
    chex.assert_trees_all_equal(after[0].velocity, state[0].velocity)


@pytest.mark.parametrize("alias", RATED, ids=name_of)
def test_no_number_is_needed(alias):
    """The model alone makes an optimizer; a first try is `alias(model=model)`."""
    assert alias(model=problem()[0]).init(problem()[1])
    with pytest.raises(ValueError, match="model"):
        alias(0.1)
    with pytest.raises(ValueError, match="learning rate first and the model second"):
        alias(problem()[0], 0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trust_region": 0.0}, "positive, in nats a label, got 0.0"),
        ({"trust_region": -1}, "positive"),
        (
            {"trust_region": ng.damping.AdaptiveRadius},
            "trust_region is the class AdaptiveRadius",
        ),
        ({"damping": ng.Relative}, r"class Relative: give it Relative\("),
        ({"momentum": 1.0}, r"lie in \[0, 1\), got 1.0"),
        ({"momentum": "0.9"}, "momentum must be a scalar"),
        ({"momentum": optax.constant_schedule(0.9)}, r"inject_.*momentum=schedule\)"),
        ({"weight_decay": lambda step: 0.1}, r"inject_.*weight_decay=schedule\)"),
        ({"weight_decay": -0.1}, "at least 0, got -0.1"),
        ({"weight_decay": float("nan")}, "finite"),
    ],
)
def test_impossible_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ng.kfac(0.1, problem()[0], **options)
    trust = ng.damping.TrustRegion(1e-2, 0.1, momentum=0.9)
    with pytest.raises(ValueError, match="its own momentum"):
        ng.scale_by_spring(ng.curvature.Gram(problem()[0]), trust_region=trust)


@pytest.mark.parametrize(
    "decay", [-0.1, lambda step: 0.1], ids=["negative", "function"]
)
def test_impossible_weight_decay_is_refused_where_damping_adapts(decay):
    model = problem()[0]
    factored = ng.scale_by_factored_curvature
    for make in (
        lambda: ng.kfac_adaptive(model, weight_decay=decay),
        lambda: factored(ng.curvature.KFAC(model), weight_decay=decay),
        lambda: ng.scale_by_quadratic_model(model, weight_decay=decay),
    ):
        with pytest.raises(ValueError, match="weight_decay must be"):
            make()


def test_a_schedule_of_momentum_is_injected():
    """As the error says: at each step the momentum of that step."""
    model, params, inputs = problem()
    injected = optax.inject_hyperparams(
        ng.kfac, static_args=("model", "refresh", "trust_region")
    )(0.1, model, momentum=lambda step: 0.5 * step / (1 + step))
    state = injected.init(params)
    for step in range(3):
        _, state = injected.update(params, state, params, inputs=inputs)
        assert state.hyperparams["momentum"] == pytest.approx(0.5 * step / (1 + step))


def test_the_composition_of_before_warns_and_works():
    model, kfac, ekfac = problem()[0], cast(Any, ng.kfac), cast(Any, ng.ekfac)
    with pytest.warns(DeprecationWarning, match="momentum="):
        old = kfac(0.1, model, then=optax.trace(BETA), trust_region=None)
    _, updates, _ = steps(old)
    new = ng.kfac(0.1, model, momentum=BETA, trust_region=None)
    chex.assert_trees_all_close(updates, steps(new)[1], rtol=1e-9)
    with pytest.warns(DeprecationWarning, match="sub_batch"):
        ekfac(0.1, model, sub_batch=2).init(problem()[1])

"""The radius that follows the slope of the loss where the last step ended."""

from __future__ import annotations

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import relative_error

import natgrad as ng

RULE = ng.damping.AdaptiveRadius(initial=0.02, least=0.01, most=0.05, gain=0.2)
X = np.random.default_rng(0).normal(size=(5, 6, 4, 3))  # batches of six sequences
Y = np.random.default_rng(1).integers(0, 2, size=(5, 6, 4))
LABELS = 4
EVERY_STEP = ng.Refresh()
# An optimizer with options whose parts all lie inside what is applied.
OPTIMIZERS = {
    "natural_gradient": lambda m: ng.natural_gradient(0.5, m, trust_region=RULE),
    "momentum and decay": lambda m: ng.natural_gradient(
        0.5, m, trust_region=RULE, momentum=0.9, weight_decay=0.1
    ),
    "schedule": lambda m: ng.gram(lambda k: 0.9**k, m, trust_region=RULE),
    "spring": lambda m: ng.spring(0.5, m, trust_region=RULE),
    "kfac": lambda m: ng.kfac(0.5, m, trust_region=RULE),
    "diagonal_fisher": lambda m: ng.diagonal_fisher(0.5, m, trust_region=RULE),
}


@functools.cache
def problem():
    rng = np.random.default_rng(2)
    params = {"w": rng.normal(size=(3, 2)), "v": rng.normal(size=(2, 2))}
    apply = lambda params, x: jnp.tanh(x @ params["w"]) @ params["v"]
    model = ng.Model(apply, ng.families.Categorical(), example_inputs=X[0, :1])
    return model, jax.tree.map(jnp.asarray, params)


def path(tx, sign=1.0, dtype=None):
    """Gradients, updates, radii and divergences along the training path."""
    model, params = problem()
    params = jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), params)

    @jax.jit
    def step(params, state, x, y):
        grads = jax.grad(lambda p: sign * model.loss(p, x, y))(params)
        updates, state = tx.update(grads, state, params, inputs=x, targets=y)
        new = optax.apply_updates(params, updates)
        return new, state, (grads, updates, model.kl(params, new, x))

    state, found = tx.init(params), []
    for x, y in zip(X, Y, strict=True):
        params, state, seen = step(params, state, x, y)
        found.append((*seen, optax.tree.get(state, "per_label")))
    return [*zip(*found, strict=True)], state


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_each_radius_is_the_last_one_by_the_slope_at_the_end_of_its_step(name):
    (grads, updates, divergences, radii), _ = path(OPTIMIZERS[name](problem()[0]))
    expected = [RULE.initial]
    for gradient, applied in zip(grads[1:], updates, strict=False):
        products = jax.tree.map(np.vdot, gradient, applied)
        slope = sum(jax.tree.leaves(products)) / (2 * expected[-1] * LABELS)
        repeated = slope + 9 * ("momentum" in name)  # 0.9 repeats a step nine times
        b = slope if slope > 1 else np.clip(repeated, -1, 1)
        least = RULE.least / 10 if slope > 1 else min(RULE.least, expected[-1])
        radius = expected[-1] * max(np.exp(-RULE.gain * b), 0.25)
        expected.append(np.clip(radius, least, RULE.most))
    assert len(set(expected)) > 3  # it moves
    assert relative_error(np.array(radii), np.array(expected)) < 1e-9
    assert np.all(np.array(divergences) <= LABELS * np.array(radii) * (1 + 2e-3))


@pytest.mark.parametrize("part", [0.4, 0.8, 1.0, 3.0])
def test_after_a_part_of_the_newton_step_of_least_squares_b_is_1_less_its_inverse(part):
    """Quadratic loss, exact F, the same batch: F Δ is the change of the gradient."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(8, 2)), rng.normal(size=(8, 1))
    model = ng.Model(lambda w, x: x @ w, ng.families.NormalMean())
    w = jnp.zeros((2, 1))
    newton = np.linalg.lstsq(x, y, rcond=None)[0]
    radius = part**2 * np.sum((x @ newton) ** 2) / (2 * len(x))
    rule = ng.damping.AdaptiveRadius(radius, radius / 9, 9 * radius, gain=0.5)
    tx = ng.natural_gradient(part, model, damping=0.0, trust_region=rule)
    state = tx.init(w)
    for _ in range(2):
        grads = jax.grad(model.loss)(w, x, y)
        updates, state = tx.update(grads, state, w, inputs=x)
        w = optax.apply_updates(w, updates)
    found = np.log(optax.tree.get(state, "per_label") / radius)
    assert found == pytest.approx(-0.5 * max(1 - 1 / part, -1), abs=2e-3)


@pytest.mark.parametrize("momentum", [None, 0.9])
def test_a_step_that_f_was_wrong_of_counts_in_full(momentum):
    """b > 1 is more than F has for any length of a step; ⟨g, −v⟩ |η|/(2 δ) is b."""
    of = lambda radius, b: float(
        RULE.of(
            RULE.init(jnp.ones(2))._replace(
                per_label=jnp.float64(radius),
                last_step=jnp.ones(2),
                per_product=jnp.float64(1),
            ),
            -jnp.full(2, b / 2),
            momentum,
        )
    )
    for b in (1.5, 3.0, 6.0):
        assert of(0.04, b) == pytest.approx(0.04 * np.exp(-RULE.gain * b))
    assert of(0.04, 1e6) == pytest.approx(0.01)  # a quarter at least
    assert of(0.0015, 100.0) == pytest.approx(0.001)  # a tenth of the least
    # What F foresees brings it to the least and no further, and not up to it at once.
    assert of(0.0101, 1.0) == pytest.approx(0.01)
    assert of(0.002, 1.0) == pytest.approx(0.002)
    longer = np.exp(RULE.gain)
    assert of(0.002, -20.0) == pytest.approx(0.002 * longer)
    assert of(0.0499, -20.0) == pytest.approx(0.05)


def test_climbing_a_negative_loss_is_descending_the_loss():
    down, up = (
        path(ng.natural_gradient(rate, problem()[0], trust_region=RULE), sign)[0]
        for rate, sign in ((0.5, 1.0), (-0.5, -1.0))
    )
    chex.assert_trees_all_close(down[1:], up[1:], rtol=1e-9)


def test_a_skipped_step_teaches_nothing():
    model, params = problem()
    tx = ng.kfac(0.5, model, trust_region=RULE)
    _, state = path(tx)
    nan = jax.tree.map(lambda leaf: jnp.nan * leaf, params)
    _, after = tx.update(nan, state, params, inputs=X[0])
    assert after[0].health.skipped
    chex.assert_trees_all_equal(after[0].radius, state[0].radius)


def test_a_slope_that_overflows_teaches_nothing():
    params = jnp.ones(2, jnp.float32)
    known = {"per_product": jnp.float32(1), "last_step": 3e38 * params}
    state = RULE.init(params)._replace(**known)
    for gradient in (params, 3e38 * params, jnp.nan * params):
        assert RULE.of(state, gradient) == np.float32(RULE.initial)


def test_a_batch_without_labels_says_nothing_of_the_step():
    apply = lambda w, x: x["x"] @ w
    weights = lambda inputs: inputs["mask"]
    model = ng.Model(apply, ng.families.Categorical(), weights=weights)
    rng, w = np.random.default_rng(4), jnp.zeros((3, 2))
    tx = ng.natural_gradient(0.5, model, trust_region=RULE)
    state = tx.init(w)
    for mask in (0.0, 1.0):
        inputs = {"x": rng.normal(size=(4, 3)), "mask": np.full(4, mask)}
        _, state = tx.update(jnp.ones_like(w), state, w, inputs=inputs)
    assert optax.tree.get(state, "per_label") == pytest.approx(RULE.initial)


def test_of_bfloat16_parameters_the_radius_is_a_float32():
    tx = ng.kfac(0.5, problem()[0], trust_region=RULE, refresh=EVERY_STEP)
    (_, updates, _, radii), _ = path(tx, dtype=jnp.bfloat16)
    assert {radius.dtype for radius in radii} == {jnp.dtype(jnp.float32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {jnp.dtype("bfloat16")}
    assert len(set(map(float, radii))) > 3


def test_the_state_of_another_rule_is_refused():
    model, params = problem()
    fixed, adapted = (ng.kfac(0.5, model, trust_region=r) for r in (0.01, RULE))
    with pytest.raises(ValueError, match="state was made for"):
        adapted.update(params, fixed.init(params), params, inputs=X[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0.5}, "least <= initial <= most, got 0.01, 0.5 and 0.3"),
        ({"least": 0.06}, "least <= initial"),
        ({"least": 0.0}, "least must be positive and finite, got 0.0"),
        ({"most": np.inf}, "most must be positive and finite"),
        ({"gain": -0.1}, r"gain must lie in \[0, 1\], got -0.1"),
        ({"gain": "0.1"}, "gain must be a scalar"),
    ],
)
def test_impossible_rules_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ng.damping.AdaptiveRadius(**options)

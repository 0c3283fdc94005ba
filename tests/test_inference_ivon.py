"""IVON: its law on a conjugate quadratic, its positivity, and a small network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from natgrad.inference import IvonState, draw_weights, ivon

CURVATURES = jnp.array([0.2, 1.0, 5.0])
CENTRE = jnp.array([1.0, -2.0, 0.5])
ESS, DECAY = 200.0, 0.3


def quadratic(w):
    return 0.5 * jnp.sum(CURVATURES * (w - CENTRE) ** 2)


def trajectory(tx, loss, params, steps, key):
    """params and states after each step."""

    def body(carry, key):
        params, state = carry
        weights = draw_weights(key, params, state)
        grads = jax.grad(loss)(weights)
        updates, state = tx.update(grads, state, params, weights=weights)
        carry = optax.apply_updates(params, updates), state
        return carry, carry

    start = params, tx.init(params)
    return jax.lax.scan(body, start, jax.random.split(key, steps))[1]


def test_its_law_converges_to_the_posterior():
    """Of a quadratic loss: mean a c/(a + δ) and variance 1/(λ (a + δ)).

    Both fluctuate, the precision by √(1 − β₂): averages of the second half of 32
    runs, and 1 % for what the second-order term adds.
    """
    rate = optax.exponential_decay(0.1, 4000, 0.1)
    tx = ivon(rate, ESS, weight_decay=DECAY, initial_hessian=2.0, b1=0.9, b2=0.998)
    run = lambda key: trajectory(tx, quadratic, jnp.zeros(3), 8000, key)
    keys = jax.random.split(jax.random.key(0), 32)
    means, states = jax.jit(jax.vmap(run))(keys)
    late_means = jnp.mean(means[:, 4000:], axis=1)
    late_precisions = jnp.mean(states.precision[:, 4000:], axis=1)
    for late, exact in (
        (late_means, CURVATURES * CENTRE / (CURVATURES + DECAY)),
        (late_precisions, CURVATURES + DECAY),
    ):
        error = jnp.std(late, axis=0, ddof=1) / np.sqrt(len(keys))
        off = jnp.abs(jnp.mean(late, axis=0) - exact)
        assert np.all(off < 4.5 * error + 0.01 * jnp.abs(exact))
        assert np.all(error < 0.02 * jnp.abs(exact))


def test_draws_have_the_law_of_the_state():
    precision = jnp.array([0.5, 2.0])
    state = IvonState(jnp.array(0), jnp.zeros(2), precision, jnp.array(10.0))
    draw = lambda key: draw_weights(key, jnp.array([1.0, -1.0]), state)
    w = jax.vmap(draw)(jax.random.split(jax.random.key(2), 20000))
    variance = 1 / (10 * precision)
    z_mean = (jnp.mean(w, 0) - jnp.array([1.0, -1.0])) / jnp.sqrt(variance / 20000)
    z_variance = (jnp.var(w, 0) / variance - 1) / np.sqrt(2 / 20000)
    assert np.all(np.abs(z_mean) < 4.5)
    assert np.all(np.abs(z_variance) < 4.5)


def test_one_step_by_hand():
    """Algorithm 1 of Shen et al. (2024), in numpy."""
    alpha, b1, b2 = 0.1, 0.8, 0.9
    tx = ivon(alpha, ESS, weight_decay=DECAY, initial_hessian=1.5, b1=b1, b2=b2)
    m, w, g = np.array([0.3, -1.0]), np.array([0.35, -1.2]), np.array([2.0, -0.4])
    state = tx.init(jnp.asarray(m))
    updates, state = tx.update(
        jnp.asarray(g), state, jnp.asarray(m), weights=jnp.asarray(w)
    )
    h = 1.5
    h_hat = g * (w - m) * ESS * (h + DECAY)
    h_new = (
        b2 * h + (1 - b2) * h_hat + 0.5 * (1 - b2) ** 2 * (h - h_hat) ** 2 / (h + DECAY)
    )
    np.testing.assert_allclose(state.precision, h_new + DECAY, rtol=1e-12)
    np.testing.assert_allclose(
        updates, -alpha * (g + DECAY * m) / (h_new + DECAY), rtol=1e-12
    )


def test_the_precision_stays_positive_whatever_the_gradient():
    tx = ivon(0.1, ESS, weight_decay=1e-3, b2=0.5)
    params = jnp.ones(3, jnp.float32)
    state = tx.init(params)
    for scale in (1e3, -1e3, 1e6, -1e6):
        weights = draw_weights(jax.random.key(3), params, state)
        grads = jnp.float32(scale) * (weights - params)
        before = state.precision
        _, state = tx.update(grads, state, params, weights=weights)
        assert state.precision.dtype == jnp.float32
        assert np.all(state.precision >= 0.499 * before)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_the_precision_does_not_depend_on_how_the_params_are_rounded(dtype):
    """With a million examples σ is below the spacing of 16-bit numbers."""
    tx = ivon(0.0, 1e6, weight_decay=1e-3, b2=0.998)

    def precision(dtype):
        single = lambda w: quadratic(w.astype(jnp.float32))
        start, key = CENTRE.astype(dtype), jax.random.key(0)
        path, states = trajectory(tx, single, start, 6000, key)
        assert path.dtype == dtype
        return jnp.mean(states.precision[3000:], axis=0)

    half, full = jax.jit(precision, static_argnums=0)(dtype), precision(jnp.float32)
    np.testing.assert_allclose(half, full, rtol=1e-3)
    np.testing.assert_allclose(half, CURVATURES + 1e-3, rtol=0.1)


def test_a_network_learns_and_knows_what_it_does_not_know():
    """float32: the loss falls, and the law is wider where there are no data."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.uniform(-1, 1, (128, 1)), jnp.float32)
    y = jnp.sin(3 * x) + 0.1 * jnp.asarray(rng.normal(size=(128, 1)), jnp.float32)
    shapes = {"a": (1, 16), "b": (16,), "c": (16, 1), "d": (1,)}
    params = {
        name: jnp.asarray(rng.normal(size=shape) / 2, jnp.float32)
        for name, shape in shapes.items()
    }
    net = lambda p, x: jnp.tanh(x @ p["a"] + p["b"][None]) @ p["c"] + p["d"][None]
    loss = lambda p: jnp.mean((y - net(p, x)) ** 2) / (2 * 0.1**2)
    tx = ivon(0.02, 128.0, weight_decay=1e-2, initial_hessian=5.0, b2=0.999)
    run = jax.jit(lambda key: trajectory(tx, loss, params, 3000, key))
    path, states = run(jax.random.key(0))
    last = lambda tree: jax.tree.map(lambda leaf: leaf[-1], tree)
    final, state = last(path), last(states)
    assert loss(final) < loss(params) / 20
    assert all(
        leaf.dtype == jnp.float32 for leaf in jax.tree.leaves((final, state[1:]))
    )
    at = jnp.array([[0.0], [2.5]], jnp.float32)
    draw = lambda key: net(draw_weights(key, final, state), at)[:, 0]
    inside, outside = jnp.std(
        jax.vmap(draw)(jax.random.split(jax.random.key(1), 200)), 0
    )
    assert outside > 2 * inside


def test_bad_input_is_refused():
    for words in ({"ess": 0.0}, {"ess": 1.0, "weight_decay": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            ivon(0.1, **words)
    with pytest.raises(ValueError, match="initial_hessian"):
        ivon(0.1, 1.0, initial_hessian=-1.0)
    for beta in "b1", "b2":
        with pytest.raises(ValueError, match=rf"{beta} must lie in \[0, 1\), got 1.5"):
            ivon(0.1, 1.0, **{beta: 1.5})
    tx, params = ivon(0.1, 10.0), jnp.ones(2)
    with pytest.raises(ValueError, match="without weights"):
        tx.update(params, tx.init(params), params)
    with pytest.raises(ValueError, match="floating array"):
        tx.init(jnp.arange(3))

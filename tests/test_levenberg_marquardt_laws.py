"""λ outlives convergence, bad batches and batches that are fitted by chance."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng
from natgrad.transforms.adaptive.batch_loss import BatchLoss

RNG = np.random.default_rng(0)
X = np.asarray(RNG.normal(size=(64, 4)), "float32")
NOISE = np.asarray(0.5 * RNG.normal(size=64), "float32")
LINEAR = ng.Model(lambda p, x: (x @ p)[:, None], ng.families.NormalMean())


def regression(slopes):
    return np.asarray(X @ np.asarray(slopes, "float32") + NOISE, "float32")[:, None]


def marquardt(model, rate=1.0, **options):
    direction = ng.scale_by_curvature(ng.curvature.Dense(model))
    return ng.levenberg_marquardt(
        optax.chain(direction, optax.scale(-rate)), model, **options
    )


def plain(params, inputs, targets):
    return LINEAR.loss(params, inputs, targets)


def step(tx, model, carry, batch, value_fn=None):
    (params, state), (x, y) = carry, batch
    value_fn = value_fn or model.loss
    loss, gradient = jax.value_and_grad(value_fn)(params, inputs=x, targets=y)
    more = {"inputs": x, "targets": y, "value": loss, "value_fn": value_fn}
    updates, state = tx.update(gradient, state, params, **more)
    return (optax.apply_updates(params, updates), state), (loss, state.damping)


@functools.cache
def run(own):
    """60 steps on each of two data sets, in float32."""
    tx = marquardt(LINEAR)
    params = jnp.zeros(4, "float32")
    data = [regression([0, 1, 2, 3]), regression([15, 10, 5, 0])]
    ys = jnp.repeat(jnp.stack(data), 60, 0)
    one = lambda carry, y: step(tx, LINEAR, carry, (X, y), None if own else plain)
    return jax.jit(lambda c: jax.lax.scan(one, c, ys))((params, tx.init(params)))


def least(y):
    rest = y[:, 0] - X @ np.linalg.lstsq(X, y[:, 0], rcond=None)[0]
    return np.mean(rest**2) / 2 + np.log(2 * np.pi) / 2


@pytest.mark.parametrize("own", [True, False])
def test_new_data_find_it_alive(own):
    """Rejections by rounding, after convergence, do not raise λ."""
    _, (losses, dampings) = run(own)
    assert losses.dtype == dampings.dtype == "float32"
    assert np.all(dampings <= 1.0)
    assert losses[59] < least(regression([0, 1, 2, 3])) + 1e-5
    assert losses[60] > 10
    assert losses[75] < least(regression([15, 10, 5, 0])) + 1e-4


def test_rejections_leave_damping_below_its_limit():
    """Steps uphill raise λ while they promise more than rounding r, and no further."""
    tx, params = marquardt(LINEAR, rate=-1.0), jnp.ones(4, "float32")
    y = regression([0, 1, 2, 3])
    one = lambda carry, _: step(tx, LINEAR, carry, (X, y), plain)
    run = jax.jit(lambda c: jax.lax.scan(one, c, None, length=40))
    (_, state), (losses, dampings) = run((params, tx.init(params)))
    gradient = jax.grad(LINEAR.loss)(params, X, y)
    rounding = 8 * np.finfo("float32").eps * losses[0]
    assert state.rejections == 40
    assert dampings[-1] == dampings[-10]
    assert dampings[-1] <= 4 * jnp.vdot(gradient, gradient) / rounding


def test_losses_are_compared_without_constants_of_the_law():
    """In float32 a fall of 1e-9 beside a constant of 6, to five digits."""
    scale = 1e3
    model = ng.Model(lambda p, x: (x @ p)[:, None], ng.families.NormalMean(scale))
    y = regression([0, 1, 2, 3])
    params = jnp.asarray([0.0, 1.0, 2.0, 3.0], "float32")
    ahead = params + jnp.asarray([0.02, 0.0, -0.01, 0.0], "float32")
    before, gradient = jax.value_and_grad(model.loss)(params, X, y)

    @jax.jit
    def compare(params, ahead):
        batch = BatchLoss(
            model=model,
            params=params,
            gradient=gradient,
            value=before,
            finite=jnp.array(True),
            value_fn=model.loss,
            arguments={"inputs": X, "targets": y},
            is_models_own=True,
        )
        return batch.compare(ahead)

    comparison = compare(params, ahead)
    wide = [np.asarray(each, "float64") for each in (params, ahead)]
    first, second = (np.mean((y[:, 0] - X @ p) ** 2) for p in wide)
    expected = (first - second) / (2 * scale**2)
    assert 0 < abs(expected) < np.finfo("float32").eps * before
    np.testing.assert_allclose(comparison.fall, expected, 1e-3)
    assert comparison.rounding < abs(expected)


def test_a_step_too_long_is_halved_until_it_lowers_the_loss():
    params, y = jnp.zeros(4, "float32"), regression([0, 1, 2, 3])
    lengths, states = {}, {}
    for halvings in (0, 3):
        tx = marquardt(LINEAR, rate=9.0, damping=1e-6, halvings=halvings)
        (after, state), _ = jax.jit(lambda c, tx=tx: step(tx, LINEAR, c, (X, y)))(
            (params, tx.init(params))
        )
        gradient = jax.grad(LINEAR.loss)(params, X, y)
        whole = 9 * np.linalg.solve(X.T @ X / len(X), -gradient)
        lengths[halvings] = np.vdot(after, whole) / np.vdot(whole, whole)
        states[halvings] = state
    np.testing.assert_allclose([lengths[0], lengths[3]], [0, 1 / 8], 1e-4)
    assert states[0].rejected
    assert not states[3].rejected
    assert all(state.damping == 4 * jnp.float32(1e-6) for state in states.values())


def test_batches_that_are_fitted_by_chance_raise_damping():
    """Logistic regression, 24 features, batches of 32: any of them can be separated."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(400, 24))
    y = (rng.random((400, 1)) < 1 / (1 + np.exp(-x @ rng.normal(size=(24, 1))))) * 1.0
    model = ng.Model(lambda p, x: (x @ p)[:, None], ng.families.Bernoulli())
    tx, params = marquardt(model, damping=1e-2), jnp.zeros(24)
    rows = np.stack([rng.choice(400, 32, replace=False) for _ in range(120)])

    def one(carry, rows):
        carry, _ = step(tx, model, carry, (jnp.asarray(x)[rows], jnp.asarray(y)[rows]))
        return carry, model.loss(carry[0], x, y)

    _, losses = jax.jit(lambda c: jax.lax.scan(one, c, rows))((params, tx.init(params)))
    assert np.max(losses[40:]) < np.log(2)


def test_a_damping_of_zero_is_refused_where_nothing_raises_it():
    with pytest.raises(ValueError, match="0 stays 0"):
        marquardt(LINEAR, damping=0.0)
    marquardt(LINEAR, damping=0.0, floor=ng.adaptive.LossFloor())
    with pytest.raises(ValueError, match="halvings must be an integer"):
        marquardt(LINEAR, halvings=-1)

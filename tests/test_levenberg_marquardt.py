"""Levenberg-Marquardt damping: against a NumPy loop, and bad steps undone."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    LAMBDA,
    MODEL,
    X,
    Y,
    curvature_of,
    damped_solve,
    describe,
    flat,
    gradient_of,
    oracle,
    start,
    tree_of,
)

import natgrad as ng
from natgrad.transforms import adaptive

DECAY = 0.05  # η, of ½ η |θ|² beside the model's loss
loss_of = jax.jit(MODEL.loss)


def marquardt(name="dense", rate=1.0, **options):
    inner = optax.chain(
        ng.scale_by_curvature(curvature_of(name)), optax.scale(-1.0 * rate)
    )
    return ng.levenberg_marquardt(inner, MODEL, **options)


def stepping(make):
    """A compiled step of make(rate), whose gradient and value can be spoiled."""

    def step(params, state, rate, x, on_gradient, on_value):
        value, grads = jax.value_and_grad(MODEL.loss)(params, x, Y)
        updates, state = make(rate).update(
            grads | {"b": grads["b"].at[1].add(on_gradient)},
            state,
            params,
            inputs=x,
            targets=Y,
            value=value + on_value,
            value_fn=MODEL.loss,
        )
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step)

    def call(params, state, rate=1.0, x=X, on_gradient=0.0, on_value=0.0):
        numbers = (jnp.asarray(n, float) for n in (rate, x, on_gradient, on_value))
        return compiled(params, state, *numbers)

    return call


FLOOR = 2e-3
RULES = {
    "nielsen": adaptive.Nielsen(),
    "thresholds": adaptive.Thresholds(2, 0.9),
}


def with_rule(rule, rate=1.0, damping=LAMBDA):
    floor = adaptive.LossFloor(FLOOR, power=2)
    rule = RULES[rule]
    return marquardt(rate=rate, rule=rule, damping=damping, floor=floor)


STEPS = {rule: stepping(functools.partial(with_rule, rule)) for rule in RULES}


def numpy_loss(params):
    logits = X @ np.asarray(params["w"]) + np.asarray(params["b"])
    norms = np.log(np.exp(logits).sum(1))
    return np.mean(norms - logits[np.arange(len(Y)), Y])


def numpy_marquardt(rule, damping, rate, steps):
    """λ and the parameters after each step, by dense algebra."""
    params, count, growth = start(), 0, 2.0
    for _ in range(steps):
        known, before = oracle(params), numpy_loss(params)
        damping = max(damping, FLOOR * before**2)
        d = -rate * damped_solve(known.fisher, known.gradient, damping)
        ahead = jax.tree.map(jnp.add, params, tree_of(d))
        after = numpy_loss(ahead)
        if not after <= before:
            if rule == "nielsen":
                damping, growth = damping * growth, 2 * growth
            else:
                damping = 4 * damping
            yield damping, params, True
            continue
        rho = (before - after) / -(known.gradient @ d + d @ known.fisher @ d / 2)
        params, count, growth = ahead, count + 1, 2.0
        if rule == "nielsen":
            damping *= max(1 / 3, min(2, 1 - (2 * rho - 1) ** 3))
        elif count % 2 == 0 and rho > 0.75:
            damping *= 0.9
        elif count % 2 == 0 and rho < 0.25:
            damping /= 0.9
        yield damping, params, False


@pytest.mark.parametrize("rule", RULES)
def test_damping_and_steps_are_those_of_a_numpy_loop(rule, tolerance):
    rate, damping = 2.5, 1e-3  # too long and too little: some steps are rejected
    params, state = start(), with_rule(rule, damping=damping).init(start())
    rejections = []
    for expected, at, rejected in numpy_marquardt(rule, damping, rate, 12):
        params, state = STEPS[rule](params, state, rate)
        np.testing.assert_allclose(state.damping, expected, tolerance("solve"))
        np.testing.assert_allclose(flat(params), flat(at), tolerance("solve"))
        assert state.rejected == rejected
        rejections.append(rejected)
    assert state.rejections == sum(rejections)
    assert set(rejections) == {True, False}


def restored(state, before):
    """Bit for bit, but for what the rejection is counted in."""
    assert state.rejected
    documented = {"damping", "growth", "rejected", "rejections", "undone"}
    for name in set(state._fields) - documented:
        for a, b in zip(
            jax.tree.leaves(getattr(state, name)),
            jax.tree.leaves(getattr(before, name)),
            strict=True,
        ):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


def same_bits(params, before):
    for name in params:
        assert np.asarray(params[name]).tobytes() == np.asarray(before[name]).tobytes()


def test_a_step_that_raises_the_loss_is_undone():
    params = start() | {"b": jnp.array([-0.0, 0.0, 1.0])}  # signs of zeros too
    state = with_rule("thresholds").init(params)
    after, stepped = STEPS["thresholds"](params, state, -1.0)  # uphill
    same_bits(after, params)
    restored(stepped, state)
    assert stepped.damping == 4 * LAMBDA


SPOILED = {
    "inputs": {"x": X * np.where(np.arange(X.size).reshape(X.shape) == 3, np.nan, 1)},
    "gradient": {"on_gradient": np.nan},
    "value": {"on_value": np.inf},
}


@pytest.mark.parametrize("what", SPOILED)
def test_a_batch_with_nan_leaves_no_trace(what):
    step = STEPS["thresholds"]
    params, state = step(start(), with_rule("thresholds").init(start()))
    after, stepped = step(params, state, **SPOILED[what])
    same_bits(after, params)
    restored(stepped, state)
    assert stepped.damping == state.damping  # it is not at fault


def test_statistics_with_nan_leave_no_trace():
    tx, params = marquardt(), start()
    state = tx.init(params)
    statistics = curvature_of("dense").estimate(params, X) * jnp.nan
    batch = {"inputs": X, "targets": Y, "statistics": statistics}
    loss = {"value": loss_of(params, X, Y), "value_fn": MODEL.loss}
    grads = gradient_of(params)
    moves, after = jax.jit(functools.partial(tx.update, **batch, **loss))(
        grads, state, params
    )
    same_bits(optax.apply_updates(params, moves), params)
    restored(after, state)
    assert after.damping == state.damping


def test_the_ratio_of_a_quadratic_loss_is_one(tolerance):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(8, 3)), rng.normal(size=(8, 2))
    model = ng.Model(lambda p, x: x @ p, ng.families.NormalMean(0.5))
    dense = ng.scale_by_curvature(ng.curvature.Dense(model))
    tx = ng.levenberg_marquardt(
        optax.chain(dense, optax.scale(-0.7)),
        model,
        damping=2.0,
        rule=adaptive.Nielsen(),
        weight_decay=DECAY,
    )
    params = jnp.asarray(rng.normal(size=(3, 2)))

    def loss(p, inputs, targets):
        return model.loss(p, inputs, targets) + DECAY * jnp.sum(p**2) / 2

    value, grads = jax.value_and_grad(loss)(params, x, y)
    more = {"inputs": x, "targets": y, "value": value, "value_fn": loss}
    _, state = jax.jit(functools.partial(tx.update, **more))(
        grads, tx.init(params), params
    )
    np.testing.assert_allclose(state.ratio, 1, tolerance("identity"))


# One of each kind of metric.
COMPOSED = ("sampled", "block_diagonal", "diagonal", "kfac", "ekfac", "gram")
COMPOSED += ("matrix_free",)


@pytest.mark.parametrize("name", COMPOSED)
def test_every_curvature_composes(name):
    """Scanned: the loss of the batch never rises, and the state keeps its structure."""
    chained = optax.chain(
        ng.geodesic_acceleration(ng.scale_by_curvature(curvature_of(name)), MODEL),
        ng.scale_by_quadratic_model(MODEL),
        ng.scale_by_kl_trust_region(MODEL, 0.5),
    )
    tx = ng.levenberg_marquardt(chained, MODEL, rule=adaptive.Nielsen())
    step = stepping(lambda _: tx)

    @jax.jit
    def run(carry):
        one = lambda carry, _: (step(*carry), MODEL.loss(carry[0], X, Y))
        return jax.lax.scan(one, carry, length=8)

    carry = start(), tx.init(start())
    after, losses = run(carry)
    assert describe(after) == describe(carry)
    assert np.all(np.diff(losses) <= 0)
    assert losses[-1] < losses[0] - 0.1


@pytest.mark.parametrize(
    "search",
    [
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=20),
        optax.scale_by_zoom_linesearch(max_linesearch_steps=20),
    ],
)
def test_the_line_searches_of_optax_take_its_extra_arguments(search):
    inner = optax.chain(
        ng.scale_by_curvature(curvature_of("dense")), optax.scale(-9.0), search
    )
    tx = ng.levenberg_marquardt(inner, MODEL, damping=1e-3)
    params, state = stepping(lambda _: tx)(start(), tx.init(start()))
    assert not state.rejected
    assert numpy_loss(params) < numpy_loss(start())


def test_what_is_missing_is_named():
    tx, params, grads = marquardt(), start(), gradient_of(start())
    state = tx.init(params)
    with pytest.raises(ValueError, match="value=loss, value_fn="):
        tx.update(grads, state, params, inputs=X)
    with pytest.raises(ValueError, match="inputs=x"):
        tx.update(grads, state, params, value=1.0, value_fn=MODEL.loss)
    rescaled = ng.scale_by_quadratic_model(MODEL)
    with pytest.raises(ValueError, match="grad=gradient"):
        rescaled.update(grads, rescaled.init(params), params, inputs=X)
    with pytest.raises(ValueError, match=r"neither targets nor a key.*Empirical"):
        ng.scale_by_quadratic_model(MODEL, labels=ng.curvature.Empirical())
    with pytest.raises(ValueError, match="radius must be positive"):
        ng.scale_by_kl_trust_region(MODEL, 0.0)
    with pytest.raises(ValueError, match="0 < factor < 1 < rejection"):
        adaptive.Thresholds(factor=1.0)
    with pytest.raises(ValueError, match="integer >= 1"):
        adaptive.Trials(period=0)


@pytest.mark.parametrize(
    ("value_fn", "words"),
    [
        (lambda p, x, y: loss_of(p, x, y), r"\(p, x, y\).*inputs, targets.*'x'"),
        (lambda p: (loss_of(p, X, Y), 1.0), r"shape \(\).*\(\(\), \(\)\).*\[0\]"),
        (lambda p: -MODEL.log_prob(p, X, Y), rf"shape \(\).*\({len(X)},\)"),
    ],
)
def test_a_loss_that_cannot_be_called_or_compared_is_refused(value_fn, words):
    tx, params, grads = marquardt(), start(), gradient_of(start())
    batch = {"inputs": X, "targets": Y, "value": 1.0, "value_fn": value_fn}
    with pytest.raises(ValueError, match=f"value_fn.*{words}"):
        tx.update(grads, tx.init(params), params, **batch)

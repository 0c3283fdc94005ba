"""Momentum inside the damped solve, for every curvature."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, ravel, relative_error

import natgrad as ng

DAMPING, MOMENTUM = 0.05, 0.9
CASE = CASES["categorical"]


def batches(count=4):
    """Batches of one problem."""
    _, params, x, y = CASE.problem(examples=7 * count)
    return params, x.reshape(count, 7, -1), y.reshape(count, 7)


def path(tx, model, params, x, y):
    """Updates and states of a few steps on changing batches."""

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(model.loss)(params, *batch)
        updates, state = tx.update(
            gradient, state, params, inputs=batch[0], targets=batch[1]
        )
        params = optax.apply_updates(params, jax.tree.map(lambda u: -0.2 * u, updates))
        return (params, state), (params, updates, gradient, state)

    run = lambda params, x, y: jax.lax.scan(step, (params, tx.init(params)), (x, y))[1]
    return jax.jit(run)(params, x, y)


def test_each_step_minimises_the_pulled_quadratic_model():
    """Σ over rows of (B φ − e)² + λ |φ − μ φ_before|² by least squares, g = Bᵀ e."""
    model = CASE.model()
    params, x, y = batches()
    tx = ng.scale_by_spring(
        ng.curvature.Dense(model, ng.curvature.Empirical()),
        damping=DAMPING,
        momentum=MOMENTUM,
    )
    thetas, updates, _, _ = path(tx, model, params, x, y)
    layout = ng.tree.Layout.of(params)
    losses = lambda v, x, y: -model.log_prob(layout.unravel(v), x, y)
    jacobian = jax.jit(jax.jacrev(losses))
    before, theta = np.zeros(ravel(params).size), params
    for k in range(4):
        rows = np.asarray(jacobian(ravel(theta), x[k], y[k])) / np.sqrt(7)
        e = np.ones(7) / np.sqrt(7)
        tall = np.concatenate([rows, np.sqrt(DAMPING) * np.eye(before.size)])
        right = np.concatenate([e, np.sqrt(DAMPING) * MOMENTUM * before])
        expected = np.linalg.lstsq(tall, right, rcond=None)[0]
        given = ravel(jax.tree.map(lambda leaf, k=k: leaf[k], updates))
        assert relative_error(given, expected) < 1e-9
        before, theta = expected, jax.tree.map(lambda leaf, k=k: leaf[k], thetas)


# The metrics of other labels are those of "dense".
@pytest.mark.parametrize(
    "name", sorted(ng.CURVATURES.keys() - {"sampled", "empirical"})
)
def test_every_curvature_obeys_the_recursion(name):
    """(F_k + λI) φ_k = g_k + λ μ φ_{k−1}, with F_k asked of the curvature itself."""
    model = CASE.model()
    params, x, y = batches(3)
    curvature = ng.CURVATURES[name](model)
    tx = ng.scale_by_spring(curvature, damping=DAMPING, momentum=MOMENTUM)
    thetas, updates, gradients, states = path(tx, model, params, x, y)
    at = lambda tree, k: jax.tree.map(lambda leaf: leaf[k], tree)
    product = jax.jit(lambda v, *batch: ravel(curvature.metric(*batch).mv(v)))
    before, theta = 0.0, params
    for k in range(3):
        statistics = at(states.solve.statistics, k)
        direction = at(updates, k)
        left = product(direction, statistics, theta, x[k], y[k])
        left += DAMPING * ravel(direction)
        right = ravel(at(gradients, k)) + DAMPING * MOMENTUM * before
        assert relative_error(left, right) < 1e-7
        before, theta = ravel(direction), at(thetas, k)


def test_without_momentum_it_is_the_plain_step():
    model = CASE.model()
    params, x, y = batches()
    curvature = ng.curvature.Gram(model)
    with_none = ng.scale_by_spring(curvature, damping=DAMPING, momentum=0.0)
    plain = ng.scale_by_curvature(curvature, damping=DAMPING)
    given = path(with_none, model, params, x, y)[0]
    expected = path(plain, model, params, x, y)[0]
    assert relative_error(ravel(given), ravel(expected)) < 1e-12


def test_a_skipped_step_keeps_the_direction_before_it():
    model = CASE.model()
    params, x, y = batches(2)
    tx = ng.scale_by_spring(ng.curvature.Gram(model), damping=DAMPING)
    update = jax.jit(lambda g, state: tx.update(g, state, params, inputs=x[0]))
    gradient = jax.jit(jax.grad(model.loss))(params, x[0], y[0])
    first, state = update(gradient, tx.init(params))
    bad = jax.tree.map(lambda g: g * jnp.nan, gradient)
    none, state = update(bad, state)
    assert state.solve.health.skipped
    assert (ravel(none) == 0).all()
    assert relative_error(ravel(state.direction), ravel(first)) < 1e-14


def test_the_norm_constraint_shortens_long_steps_only():
    tx = ng.scale_by_norm_constraint(0.5, constraint=0.04)
    long, short = {"a": jnp.array([3.0, 4.0])}, {"a": jnp.array([0.1, 0.2])}
    state = tx.init(long)
    given, state = tx.update(long, state)
    assert relative_error(jnp.linalg.norm(0.5 * given["a"]), 0.2) < 1e-14
    given, _ = tx.update(short, state)
    assert relative_error(given["a"], short["a"]) < 1e-14
    assert tx.update({"a": jnp.zeros(2)}, state)[0]["a"].tolist() == [0, 0]


def test_the_alias_lowers_the_loss_and_bounds_every_step():
    model, params, x, y = CASE.problem(examples=30)
    tx = ng.spring(0.1, model, damping=1e-2, constraint=1e-2)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(gradient, state, params, inputs=x)
        return (optax.apply_updates(params, updates), state), (
            loss,
            optax.tree.norm(updates),
        )

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=40)[1])
    losses, lengths = run(params)
    assert losses[-1] < 0.8 * losses[0]
    assert (lengths <= 0.1 + 1e-12).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"momentum": 1.5}, "momentum must lie"), ({"damping": -1.0}, "damping must be")],
)
def test_impossible_arguments_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ng.scale_by_spring(ng.curvature.Gram(CASE.model()), **arguments)
    with pytest.raises(ValueError, match="constraint must be positive"):
        ng.scale_by_norm_constraint(0.1, constraint=0.0)


def test_rows_of_the_gradient_are_refused():
    """They would take the momentum away in silence."""
    tx = ng.scale_by_spring(ng.curvature.Dense(CASE.model()))
    params, x, _ = batches()
    with pytest.raises(ValueError, match="leave them out"):
        tx.update(params, tx.init(params), params, inputs=x[0], rows={})


@pytest.mark.parametrize(
    ("rate", "momentum"),
    [(1e-3, 0.99), (0.3, 0.7), (1.5, 0.0), (lambda k: 0.2 + k, 0.8)],
)
def test_the_momentum_is_what_is_left_to_go_unless_given(rate, momentum):
    params, x, y = batches(1)
    model = CASE.model()
    for tx in (
        ng.spring(rate, model),
        ng.scale_by_spring(
            ng.curvature.Gram(model), trust_region=ng.damping.TrustRegion(None, rate)
        ),
    ):

        @jax.jit  # of all that a step computes, what this needs is compiled
        def found(params, tx=tx):
            gradient = jax.grad(model.loss)(params, x[0], y[0])
            state = tx.update(gradient, tx.init(params), params, inputs=x[0])[1]
            return optax.tree.get(state, "momentum")

        assert found(params) == pytest.approx(momentum)


def test_as_it_comes_it_stays_where_other_batches_look_elsewhere(single_precision):
    """A sine without noise, on which momentum 0.99 at the same rate diverges."""
    keys = jax.random.split(jax.random.PRNGKey(2), 8)
    shapes = (1, 16), (16, 16), (16, 1)
    params = [
        (jax.random.normal(key, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1]))
        for key, shape in zip(keys, shapes, strict=False)
    ]

    def apply(params, x):
        *hidden, (w, b) = params
        for v, a in hidden:
            x = jnp.tanh(x @ v + a[None])
        return x @ w + b[None]

    model = ng.Model(apply, ng.families.NormalMean())
    x = jax.random.uniform(keys[5], (1024, 1), minval=-3, maxval=3)
    y = jnp.sin(2 * x)

    def after(tx):
        def step(carry, key):
            params, state = carry
            batch = jax.random.randint(key, (128,), 0, 1024)
            gradient = jax.grad(model.loss)(params, x[batch], y[batch])
            updates, state = tx.update(gradient, state, params, inputs=x[batch])
            return (optax.apply_updates(params, updates), state), ()

        keys_of_steps = jax.random.split(keys[7], 400)[:120]
        start = params, tx.init(params)
        found = jax.lax.scan(step, start, keys_of_steps)[0][0]
        return jnp.mean((apply(found, x) - y) ** 2)

    # 1e-6; momentum 0.99 ends at 0.05, and at 40 four hundred steps later.
    assert jax.jit(after, static_argnums=0)(ng.spring(model=model)) < 1e-4

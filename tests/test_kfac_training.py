"""Training with K-FAC and EKFAC: refreshes, transformations of JAX, what it earns."""

from __future__ import annotations

import functools
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import zoo
from problems import CASES, ravel, relative_error
from sklearn.datasets import load_digits

import natgrad as ng
from natgrad.curvature import EKFAC, KFAC, Dense
from natgrad.kronecker import Eigenbasis, FactoredTikhonov

CASE = CASES["categorical"]
MODEL, PARAMS, X, Y = CASE.problem()
BATCHES = jax.random.normal(jax.random.PRNGKey(7), (12, *X.shape))


def transformation(name, damping=0.1, decay=0.5, period=3, statistics=1):
    """K-FAC or EKFAC with everything that is kept between refreshes."""
    refresh = ng.Refresh(statistics=statistics, inverses=period)
    if name == "ekfac":
        return ng.scale_by_curvature(
            EKFAC(MODEL, period=period),
            damping=damping,
            decay=decay,
            refresh=ng.Refresh(statistics=statistics),
        )
    solver = {"eigen": Eigenbasis(), "tikhonov": FactoredTikhonov()}[name]
    return ng.scale_by_curvature(
        KFAC(MODEL), damping=damping, decay=decay, solver=solver, refresh=refresh
    )


NAMES = pytest.mark.parametrize("name", ["eigen", "tikhonov", "ekfac"])


def trained(name, hyper, steps=5, period=3):
    """The loss after a scan of steps, as a function of [damping, learning rate]."""
    tx = optax.chain(
        transformation(name, hyper[0], period=period),
        optax.scale_by_learning_rate(hyper[1]),
    )

    def step(carry, x):
        params, state = carry
        grads = jax.grad(MODEL.loss)(params, x, Y)
        updates, state = tx.update(grads, state, params, inputs=x)
        return (optax.apply_updates(params, updates), state), None

    start = (PARAMS, tx.init(PARAMS))
    (params, _), _ = jax.lax.scan(step, start, BATCHES[:steps])
    return MODEL.loss(params, X, Y)


# Derivatives and batches ------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "tikhonov",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("eigen", "ekfac")),
    ],
)
def test_hypergradients_through_five_steps_equal_central_differences(name):
    objective = lambda hyper: trained(name, hyper)
    at, value = jnp.array([0.2, 0.3]), jax.jit(objective)
    reverse = jax.jit(jax.grad(objective))(at)
    forward = jax.jit(jax.jacfwd(objective))(at)
    for i in range(2):
        shifted = lambda h, i=i: value(at.at[i].add(h))
        h = 1e-4
        near = (shifted(h) - shifted(-h)) / (2 * h)
        far = (shifted(2 * h) - shifted(-2 * h)) / (4 * h)
        expected = (4 * near - far) / 3
        assert abs(expected) > 1e-4
        assert abs(reverse[i] - expected) < 1e-6 * abs(expected)
        assert abs(forward[i] - expected) < 1e-6 * abs(expected)


@NAMES
def test_vmap_over_eight_hyperparameters_equals_a_loop(name):
    hyper = jnp.stack([jnp.linspace(0.1, 0.8, 8), jnp.linspace(0.05, 0.4, 8)], axis=1)
    objective = lambda hyper: trained(name, hyper, steps=4)
    given = jax.jit(jax.vmap(objective))(hyper)
    one = jax.jit(objective)
    np.testing.assert_allclose(given, [one(h) for h in hyper], rtol=1e-8)
    assert np.ptp(given) > 1e-3


@NAMES
def test_a_refresh_stays_conditional_under_vmap(name):
    """Factorisations are inside conditionals of the compiled program, none outside."""
    tx = transformation(name)
    state = jax.vmap(lambda _: tx.init(PARAMS))(jnp.arange(3))
    update = lambda g, s, p: tx.update(g, s, p, inputs=X)
    batched = jax.vmap(update, in_axes=(None, 0, None))
    jaxpr = jax.make_jaxpr(batched)(PARAMS, state, PARAMS)
    kernel = "cholesky" if name == "tikhonov" else "eigh"
    assert _count(jaxpr.jaxpr, kernel, inside=False) == 0
    assert _count(jaxpr.jaxpr, kernel, inside=True) > 0


def _count(jaxpr, primitive, inside):
    """Equations of a primitive inside (or outside) of conditionals."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == primitive and not inside:
            total += 1
        for value in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if not hasattr(inner, "eqns"):
                continue
            if name != "cond":
                total += _count(inner, primitive, inside)
            elif inside:
                total += _count(inner, primitive, False)
                total += _count(inner, primitive, True)
    return total


# Refreshes --------------------------------------------------------------------------


def states(tx, steps, params=PARAMS, batches=BATCHES):
    """The state after each step at fixed parameters, the direction with it."""
    update = jax.jit(lambda g, s, x: tx.update(g, s, params, inputs=x))
    state, found = tx.init(params), []
    for x in batches[:steps]:
        direction, state = update(PARAMS, state, x)
        found.append((direction, state))
    return found


@pytest.mark.parametrize("solver", [Eigenbasis(), FactoredTikhonov()])
def test_a_kept_inverse_is_applied_before_it_is_renewed(solver):
    """Both layers refreshed together every 3 steps: steps 2 to 4 use step 1's factors,
    those after use the factors of step 4, with today's damping where it is exact."""
    tx = ng.scale_by_curvature(
        KFAC(MODEL),
        damping=0.1,
        decay=0.5,
        solver=solver,
        refresh=ng.Refresh(inverses=3, staggered=False),
    )
    seen = states(tx, 6)
    for step, source in enumerate([0, 0, 0, 0, 3, 3]):
        direction, _ = seen[step]
        factors = seen[source][1].statistics
        expected = solver(KFAC(MODEL).metric(factors, PARAMS), PARAMS, 0.1)
        assert relative_error(ravel(direction), ravel(expected)) < 1e-10, step


def test_layers_take_turns():
    """Two layers, period 4: one is renewed before steps 5 and 9, one before 3 and 7."""
    tx = ng.scale_by_curvature(
        KFAC(MODEL),
        damping=0.1,
        decay=0.5,
        solver=FactoredTikhonov(),
        refresh=ng.Refresh(inverses=4, staggered=True),
    )
    seen = states(tx, 10)
    renewed = [
        [
            bool(jnp.any(new != old))
            for old, new in zip(
                *(
                    [piece[0] for piece in seen[step][1].inverse.pieces]
                    for step in (before, before + 1)
                ),
                strict=True,
            )
        ]
        for before in range(9)
    ]
    assert [i for i, row in enumerate(renewed, 1) if row[0]] == [5, 9]
    assert [i for i, row in enumerate(renewed, 1) if row[1]] == [3, 7]


def test_statistics_are_estimated_when_they_are_due():
    seen = states(transformation("eigen", statistics=3, decay=0.0), 7)
    for step, source in enumerate([0, 0, 0, 3, 3, 3, 6]):
        expected = KFAC(MODEL).estimate(PARAMS, BATCHES[source])
        given = seen[step][1].statistics
        assert relative_error(ravel(given), ravel(expected)) < 1e-12
    assert [int(state.estimates) for _, state in seen] == [1, 1, 1, 2, 2, 2, 3]


@NAMES
def test_periods_of_one_are_every_step(name):
    """Nothing kept, nothing stale: the average's own metric, solved."""
    seen = states(transformation(name, period=1), 3)
    curvature = EKFAC(MODEL) if name == "ekfac" else KFAC(MODEL)
    solve = {
        "eigen": lambda m, v: m.solve(v, 0.1),
        "ekfac": lambda m, v: m.solve(v, 0.1),
        "tikhonov": lambda m, v: FactoredTikhonov()(m, v, 0.1),
    }[name]
    for direction, state in seen:
        metric = curvature.metric(state.statistics, PARAMS)
        expected = solve(metric, PARAMS)
        assert relative_error(ravel(direction), ravel(expected)) < 1e-10


def test_ekfac_averages_scales_in_the_basis_it_holds():
    seen = [state.statistics for _, state in states(transformation("ekfac"), 5)]
    first = EKFAC(MODEL).estimate(PARAMS, BATCHES[0])
    assert relative_error(ravel(seen[0].scales), ravel(first.scales)) < 1e-10
    inside = EKFAC(MODEL, period=3).following(seen[1]).estimate(PARAMS, BATCHES[2])
    weight = 0.5 / (1 - 0.5**3)
    same = [
        bool(jnp.all(a == b))
        for a, b in zip(seen[1].bases.right, seen[2].bases.right, strict=True)
    ]
    assert any(same)
    for kept, old, new, given in zip(
        same, seen[1].scales, inside.scales, seen[2].scales, strict=True
    ):
        if kept:
            expected = (1 - weight) * old + weight * new
            assert relative_error(given, expected) < 1e-12


def test_ekfac_carries_scales_to_a_new_basis_as_the_diagonal_there():
    """The trace stays, and the new scales are diag(Vᵀ F V) of the old matrix F."""
    curvature = EKFAC(MODEL)
    old = curvature.estimate(PARAMS, BATCHES[0])
    other = curvature.estimate(PARAMS, BATCHES[1])
    tiny = jnp.array(1e-14)
    carried = curvature.accumulate(old, other, tiny)
    before = curvature.metric(old, PARAMS)
    after = curvature.metric(carried, PARAMS)
    assert abs(before.trace() - after.trace()) < 1e-10 * before.trace()
    basis = curvature.metric(other, PARAMS)
    eigen = [
        jnp.kron(left, right)
        for left, right in zip(basis.left, basis.right, strict=True)
    ]
    turned = basis.placed(eigen).T @ before.dense() @ basis.placed(eigen)
    layout = basis.layout
    places = np.concatenate([p.ravel() for p in basis._places()])
    assert layout.size == len(places)
    expected = jnp.diag(turned)[places]
    assert relative_error(ravel(carried.scales), expected) < 1e-10


@NAMES
def test_a_bad_step_leaves_statistics_and_inverse_alone(name):
    tx = transformation(name)
    update = jax.jit(lambda g, s, x: tx.update(g, s, PARAMS, inputs=x))
    state = tx.init(PARAMS)
    bad = X.at[0, 0].set(jnp.nan)
    _, state = update(PARAMS, state, bad)  # the first one too
    assert state.health.skipped
    for x in BATCHES[:2]:
        direction, state = update(PARAMS, state, x)
        assert not state.health.skipped
        assert jnp.abs(ravel(direction)).max() > 0
    direction, after = update(PARAMS, state, bad)
    assert jnp.abs(ravel(direction)).max() == 0
    assert after.health.skips == 2
    for part in ("statistics", "inverse", "estimates"):
        old, new = getattr(state, part), getattr(after, part)
        jax.tree.map(np.testing.assert_array_equal, old, new)


def test_a_refresh_must_be_possible():
    with pytest.raises(ValueError, match="keeps its inverse"):
        ng.scale_by_curvature(Dense(MODEL), refresh=ng.Refresh(inverses=2))
    with pytest.raises(ValueError, match="integer >= 1"):
        ng.Refresh(statistics=0)


# Contracts --------------------------------------------------------------------------


@pytest.mark.parametrize("alias", [ng.kfac, ng.ekfac])
def test_donation_pickles_and_structure(alias):
    tx = alias(0.1, MODEL, refresh=ng.Refresh(2, 3), then=optax.trace(0.9))
    start = jax.jit(tx.init)(PARAMS)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p, inputs=X), donate_argnums=1)
    copy = lambda state: jax.tree.map(jnp.array, state)
    _, state = update(PARAMS, copy(start), PARAMS)
    assert jax.tree.structure(state) == jax.tree.structure(start)
    describe = lambda state: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
    assert describe(state) == describe(start)
    stored = pickle.loads(pickle.dumps(jax.tree.map(np.asarray, state)))
    restored = jax.tree.map(jnp.asarray, stored)
    given, _ = update(PARAMS, restored, PARAMS)
    expected, _ = update(PARAMS, state, PARAMS)
    assert relative_error(ravel(given), ravel(expected)) == 0


def test_a_trust_region_bounds_the_divergence_of_a_step():
    """½ η² ⟨d, F d⟩ is at most δ, exactly δ where it would be more."""
    metric = KFAC(MODEL).at(PARAMS, X)
    for radius in (1e-6, 1e-2, 1e6):
        trust = ng.damping.TrustRegion(radius, lambda count: 0.5)
        free = ng.scale_by_curvature(KFAC(MODEL), damping=0.1)
        bound = ng.scale_by_curvature(KFAC(MODEL), damping=0.1, trust_region=trust)
        step = lambda tx: tx.update(PARAMS, tx.init(PARAMS), PARAMS, inputs=X)[0]
        whole, given = step(free), step(bound)
        length = lambda d: 0.5 * 0.25 * metric.norm(d) ** 2
        expected = min(length(whole), radius)
        assert abs(length(given) - expected) < 1e-10 * expected
        scale = jnp.sqrt(expected / length(whole))
        assert relative_error(ravel(given), scale * ravel(whole)) < 1e-10


def test_the_fast_path_is_the_same_step():
    """Statistics from value_and_grad, in whatever basis, give the update of inputs=."""
    curvature = EKFAC(MODEL, period=3)
    tx = ng.scale_by_curvature(curvature, damping=0.1, decay=0.5)
    state = tx.init(PARAMS)
    for x in BATCHES[:3]:
        following = curvature.following(state.statistics)
        _, grads, statistics = following.value_and_grad(PARAMS, x, Y)
        fast, _ = tx.update(grads, state, PARAMS, statistics=statistics)
        plain, state = tx.update(grads, state, PARAMS, inputs=x)
        assert relative_error(ravel(fast), ravel(plain)) < 1e-10


# What it earns ----------------------------------------------------------------------


@functools.cache
def digits():
    return jnp.asarray(load_digits().data[:512] / 16.0, jnp.float32)


def autoencoder(sizes=(64, 50, 30, 8, 30, 50, 64)):
    """(model, params, x): tanh layers with a linear code, Bernoulli pixels."""
    keys = jax.random.split(jax.random.PRNGKey(0), len(sizes))
    params = [
        {
            "w": jax.random.normal(key, (n, o), jnp.float32) / np.sqrt(n),
            "b": jnp.zeros(o, jnp.float32),
        }
        for key, n, o in zip(keys, sizes, sizes[1:], strict=False)
    ]

    def apply(params, x):
        for i, p in enumerate(params):
            x = x @ p["w"] + p["b"][None]
            if i not in (len(params) // 2 - 1, len(params) - 1):
                x = jnp.tanh(x)
        return x

    x = digits()
    return ng.Model(apply, SoftBernoulli(), example_inputs=x[:1]), params, x


class SoftBernoulli(ng.families.Bernoulli):
    """Bernoulli whose labels may be grey values in [0, 1]."""

    def in_support(self, z, y):
        return jnp.ones(z.shape, bool)

    def log_prob(self, z, y):
        return y * z - jax.nn.softplus(z)


def run(tx, model, params, x, steps):
    def step(carry, _):
        params, state = carry
        grads = jax.grad(model.loss)(params, x, x)
        updates, state = tx.update(grads, state, params, inputs=x)
        params = optax.apply_updates(params, updates)
        return (params, state), model.loss(params, x, x)

    scan = jax.jit(
        lambda carry: jax.lax.scan(step, carry, None, length=steps),
        compiler_options={"xla_backend_optimization_level": 3},
    )
    return np.asarray(scan((params, tx.init(params)))[1])


@pytest.mark.parametrize("alias", [ng.kfac, ng.ekfac])
def test_an_autoencoder_trains_faster_than_with_adam(alias):
    model, params, x = autoencoder()
    start = float(model.loss(params, x, x))
    losses = run(alias(0.5, model, damping=1e-2), model, params, x, 60)
    adam = min(
        run(optax.with_extra_args_support(optax.adam(rate)), model, params, x, 60)[-1]
        for rate in (1e-3, 3e-3, 1e-2)
    )
    assert np.isfinite(losses).all()
    assert losses[-1] < adam < start


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "scan and remat",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "linen cnn",
                "equinox transformer",
                "tied embedding",
                "experts",
                "gru by scan",
                "attention",
                "batch norm",
                "norms",
            )
        ),
    ],
)
def test_ten_steps_lower_the_loss_of_zoo_models(name):
    apply, params, inputs, in_axes = zoo.ZOO[name]()
    flat = lambda p, x: (lambda z: z.reshape(z.shape[0], -1))(apply(p, x))
    model = ng.Model(
        flat, ng.families.NormalMean(), example_inputs=inputs, in_axes=in_axes
    )
    shape = jax.eval_shape(flat, params, inputs).shape
    y = jax.random.normal(jax.random.PRNGKey(1), shape)
    tx = ng.kfac(0.3, model, damping=1e-1)

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(model.loss)(params, inputs, y)
        updates, state = tx.update(grads, state, params, inputs=inputs)
        return optax.apply_updates(params, updates), state, loss

    state, losses = tx.init(params), []
    for _ in range(11):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0] - 1e-3
    assert not state[0].health.skipped

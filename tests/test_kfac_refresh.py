"""Statistics and inverses that are refreshed less often than every step."""

from __future__ import annotations

import pickle

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kfac_steps import BATCHES, MODEL, NAMES, PARAMS, X, Y, transformation
from problems import ravel, relative_error

import natgrad as ng
from natgrad.curvature import EKFAC, KFAC, Dense
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov


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
    metric = lambda factors: KFAC(MODEL).metric(factors, PARAMS)
    solve = jax.jit(lambda factors: solver(metric(factors), PARAMS, 0.1))
    for step, source in enumerate([0, 0, 0, 0, 3, 3]):
        direction, _ = seen[step]
        factors = seen[source][1].statistics
        expected = solve(factors)
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
    estimate = jax.jit(KFAC(MODEL).estimate)
    for step, source in enumerate([0, 0, 0, 3, 3, 3, 6]):
        expected = estimate(PARAMS, BATCHES[source])
        given = seen[step][1].statistics
        assert relative_error(ravel(given), ravel(expected)) < 1e-12
    assert [int(state.estimates) for _, state in seen] == [1, 1, 1, 2, 2, 2, 3]


def test_a_warm_up_renews_statistics_in_every_step_and_inverses_as_steps_double():
    """Step k applies inverses made after step k − 1 where k is 1, 2, 4, 8: the factors
    after steps 0, 1, 3, 7; between these it applies older ones."""
    solver = FactoredTikhonov()
    refresh = ng.Refresh(statistics=3, inverses=100, warm_up=9)
    tx = ng.scale_by_curvature(
        KFAC(MODEL), damping=0.1, decay=0.5, solver=solver, refresh=refresh
    )
    seen = states(tx, 10)
    assert [int(s.estimates) for _, s in seen] == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    solve = jax.jit(lambda s: solver(KFAC(MODEL).metric(s, PARAMS), PARAMS, 0.1))
    for step, source in enumerate([0, 0, 1, 1, 3, 3, 3, 3, 7, 7]):
        expected = solve(seen[source][1].statistics)
        assert relative_error(ravel(seen[step][0]), ravel(expected)) < 1e-10, step


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
    again = jax.jit(lambda s: solve(curvature.metric(s, PARAMS), PARAMS))
    for direction, state in seen:
        expected = again(state.statistics)
        assert relative_error(ravel(direction), ravel(expected)) < 1e-10


def test_ekfac_averages_scales_in_the_basis_it_holds():
    seen = [state.statistics for _, state in states(transformation("ekfac"), 5)]
    first = jax.jit(EKFAC(MODEL).estimate)(PARAMS, BATCHES[0])
    assert relative_error(ravel(seen[0].scales), ravel(first.scales)) < 1e-10
    following = EKFAC(MODEL, period=3).with_previous(seen[1])
    inside = jax.jit(following.estimate)(PARAMS, BATCHES[2])
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
    estimated = jax.jit(curvature.estimate)
    old, other = estimated(PARAMS, BATCHES[0]), estimated(PARAMS, BATCHES[1])
    carried = jax.jit(curvature.accumulate)(old, other, jnp.array(1e-14))
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
        chex.assert_trees_all_equal(old, new)


def test_a_refresh_must_be_possible():
    with pytest.raises(ValueError, match="keeps its inverse"):
        ng.scale_by_curvature(Dense(MODEL), refresh=ng.Refresh(inverses=2))
    with pytest.raises(ValueError, match="integer >= 1"):
        ng.Refresh(statistics=0)
    with pytest.raises(ValueError, match="integer >= 0"):
        ng.Refresh(warm_up=-1)


@pytest.mark.parametrize("alias", [ng.kfac, ng.ekfac])
def test_donation_pickles_and_structure(alias):
    tx = alias(0.1, MODEL, refresh=ng.Refresh(2, 3), momentum=0.9)
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


def test_a_trust_region_without_the_batch_bounds_the_quadratic_divergence():
    """½ η² ⟨d, F d⟩ is at most δ, exactly δ where it would be more."""
    metric = jax.jit(KFAC(MODEL).at)(PARAMS, X)

    @jax.jit
    def steps(radius):
        trust = ng.damping.TrustRegion(radius, lambda count: 0.5)
        free = ng.scale_by_curvature(KFAC(MODEL), damping=0.1)
        bound = ng.scale_by_curvature(KFAC(MODEL), damping=0.1, trust_region=trust)
        known = {"statistics": KFAC(MODEL).estimate(PARAMS, X)}
        step = lambda tx: tx.update(PARAMS, tx.init(PARAMS), PARAMS, **known)[0]
        return step(free), step(bound)

    for radius in (1e-6, 1e-2, 1e6):
        whole, given = steps(radius)
        length = lambda d: 0.5 * 0.25 * metric.norm(d) ** 2
        expected = min(length(whole), radius)
        assert abs(length(given) - expected) < 1e-10 * expected
        scale = jnp.sqrt(expected / length(whole))
        assert relative_error(ravel(given), scale * ravel(whole)) < 1e-10


def test_the_fast_path_is_the_same_step():
    """Statistics from value_and_grad, in whatever basis, give the update of inputs=."""
    curvature = EKFAC(MODEL, period=3)
    tx = ng.scale_by_curvature(curvature, damping=0.1, decay=0.5)

    @jax.jit
    def both(state, x):
        following = curvature.with_previous(state.statistics)
        _, grads, statistics = following.value_and_grad(PARAMS, x, Y)
        fast, _ = tx.update(grads, state, PARAMS, statistics=statistics)
        return fast, *tx.update(grads, state, PARAMS, inputs=x)

    state = tx.init(PARAMS)
    for x in BATCHES[:3]:
        fast, plain, state = both(state, x)
        assert relative_error(ravel(fast), ravel(plain)) < 1e-10


def test_solutions_are_measured_in_steps_that_become_rare():
    """With period 4 after 0, 1, 2, 4, 8 … periods and every hundred steps: there the
    residual is that of NumPy, in between it does not change."""
    refresh = ng.Refresh(inverses=4)
    ages = [age for age in range(450) if refresh.measures(jnp.array(age))]
    assert ages == [0, 4, 8, 16, 32, 64, 100, 128, 200, 256, 300, 400]
    tx = ng.scale_by_curvature(
        KFAC(MODEL), damping=0.1, decay=0.5, solver=Eigenbasis(), refresh=refresh
    )
    measured = []
    gradient = np.asarray(ravel(PARAMS))
    batches = [*BATCHES, *BATCHES]
    for age, (direction, state) in enumerate(states(tx, 18, batches=batches)):
        found = float(state.health.residual)
        if not refresh.measures(jnp.array(age)):
            assert found == measured[-1]
            continue
        f = KFAC(MODEL).metric(state.statistics, PARAMS).dense()
        solution = np.asarray(ravel(direction))
        rest = f @ solution + 0.1 * solution - gradient
        expected = np.linalg.norm(rest) / np.linalg.norm(gradient)
        assert found == pytest.approx(expected, rel=1e-6, abs=1e-12)
        measured.append(found)
    assert len(measured) == 4
    assert max(measured) > 0.1

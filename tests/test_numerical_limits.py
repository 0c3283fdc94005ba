"""At the edges of arithmetic: null vectors, huge numbers, full counters, no damping."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from problems import ravel, relative_error

import natgrad as ng
from natgrad import solvers, tree
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov
from natgrad.metrics.matrices import DenseMetric
from natgrad.solvers import spectral
from natgrad.tree import Layout

MAX = np.iinfo(np.int32).max
X = np.random.default_rng(0).normal(size=(6, 3))
PARAMS = {"w": jnp.full((3, 2), 0.1)}
MODEL = ng.Model(
    lambda p, x: x @ p["w"], ng.families.Categorical(), example_inputs=X[:1]
)
GRADIENT = jax.grad(MODEL.loss)(PARAMS, X, np.arange(6) % 2)


def test_the_length_of_null_vectors_is_never_nan():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(8, 3))
    metric = DenseMetric(
        Layout.of(jnp.zeros(8, jnp.float32)), jnp.asarray(root @ root.T, jnp.float32)
    )
    null = np.linalg.svd(root.T)[2][3:]
    vectors = jnp.asarray(rng.normal(size=(50, 5)) @ null, jnp.float32)
    squares = jax.vmap(lambda v: v @ metric.mv(v))(vectors)
    assert (squares < 0).any()
    lengths, slopes = jax.vmap(jax.value_and_grad(metric.norm))(vectors)
    assert (lengths >= 0).all()
    assert (lengths < 1e-2).all()
    assert jnp.isfinite(slopes).all()
    assert jnp.isnan(metric.norm(vectors[0] * jnp.nan))
    check_grads(metric.norm, (jnp.asarray(root[:, 0], jnp.float32),), 1, rtol=1e-2)


@pytest.mark.parametrize("bad", [None, np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_finite_numbers_may_be_as_large_as_they_are(dtype, bad):
    largest = float(jnp.finfo(dtype).max)
    values = [jnp.full((3, 300), largest, dtype), jnp.full(7, -largest, dtype)]
    if bad is not None:
        values[0] = values[0].at[1, 2].set(bad)
    given = {"a": values, "b": jnp.zeros((0, 2), dtype), "n": jnp.arange(3)}
    assert bool(tree.all_finite(given)) is (bad is None)


@pytest.mark.parametrize("period", [1, 3, 10])
def test_a_full_counter_goes_on_in_phase(period):
    count = jnp.asarray(MAX - 4, jnp.int32)
    for steps in range(1, 12):
        count = tree.increment(count, period=period)
        assert count.dtype == jnp.int32
        if period > 1:
            assert int(count) % period == (MAX - 4 + steps) % period
        assert MAX - 4 - period <= int(count) <= MAX
    assert int(tree.increment(count, False)) == int(count)


OPTIMIZERS = {
    "kfac": lambda: ng.kfac(0.1, MODEL),
    "ekfac": lambda: ng.ekfac(0.1, MODEL),
    "kfac_adaptive": lambda: ng.kfac_adaptive(MODEL),
    "natural_gradient": lambda: ng.natural_gradient(0.1, MODEL),
    "spring": lambda: ng.spring(0.1, MODEL),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_counter_of_an_optimizer_overflows(name):
    tx = OPTIMIZERS[name]()
    more = {}
    if name == "kfac_adaptive":
        y = np.arange(6) % 2
        loss = lambda p: MODEL.loss(p, X, y)
        more = {"value": loss(PARAMS), "value_fn": loss}
    step = jax.jit(lambda s: tx.update(GRADIENT, s, PARAMS, inputs=X, **more)[1])
    full = jax.tree.map(
        lambda a: a * 0 + MAX if a.dtype == jnp.int32 else a, tx.init(PARAMS)
    )
    state = step(step(full))
    counters = [int(a) for a in jax.tree.leaves(state) if a.dtype == jnp.int32]
    counters = [c for c in counters if c != 0]  # of the last step, such as iterations
    assert len(counters) > 1
    assert min(counters) > 2**29


def test_mirror_descent_counts_in_the_same_way():
    tx = ng.mirror_descent(0.1, ng.families.Poisson())
    state = jax.tree.map(lambda a: jnp.full_like(a, MAX), tx.init(jnp.ones(1)))
    assert int(tx.update(jnp.ones(1), state, jnp.ones(1))[1].count) == MAX


def test_only_the_pseudo_inverse_drops_directions():
    values = jnp.asarray([1.0, 1e-9, 0.0, -1e-8], jnp.float32)
    for damping in (1e-3, 1e-9):
        found, dropped = spectral.damped_reciprocal(values, damping)
        right = 1 / (np.maximum(np.asarray(values, float), 0) + damping)
        np.testing.assert_allclose(found, right, rtol=1e-6)
        assert not dropped
    found, dropped = jax.vmap(spectral.damped_reciprocal, (None, 0))(
        values, jnp.asarray([0.0, 1.0], jnp.float32)
    )
    assert found[0].tolist() == [1, 0, 0, 0]
    assert found[1].tolist()[-1] == 1
    assert dropped.tolist() == [True, False]
    slope = jax.grad(lambda s: spectral.damped_reciprocal(s, 0.5)[0].sum())(values)
    np.testing.assert_allclose(slope, [-1 / 2.25, -4, -4, 0], rtol=1e-6)


def test_the_log_determinant_counts_negative_eigenvalues_as_zero():
    diagonal = lambda *entries: (jnp.diag(jnp.asarray(entries, jnp.float32)),)
    metric = dataclasses.replace(
        ng.curvature.KFAC(MODEL).at(PARAMS, X),
        inputs=diagonal(2, 0, -1e-8),
        outputs=diagonal(1, 0),
    )
    right = np.log(2) + 5 * np.log(1e-9)
    np.testing.assert_allclose(metric.logdet(1e-9), right, rtol=1e-6)


@pytest.mark.parametrize(("gradient", "reason"), [(0.0, 0), (np.nan, 1)])
def test_a_gradient_of_zero_is_no_failure(gradient, reason):
    tx = ng.scale_by_factored_curvature(ng.curvature.KFAC(MODEL))
    gradient = jax.tree.map(lambda p: jnp.full_like(p, gradient), PARAMS)
    step = jax.jit(lambda g: tx.update(g, tx.init(PARAMS), PARAMS, inputs=X))
    updates, state = step(gradient)
    assert not ravel(updates).any()
    assert state.solve.health.reason == reason
    assert state.solve.health.skipped == bool(reason)


def by_kernel(kernel):
    return lambda w: kernel(w @ w.T, w[:, 0], 1e-3).value


def by_gram(w):
    return ng.curvature.Gram(MODEL).at({"w": w}, X).solve({"w": w}, 1e-3)["w"]


@pytest.mark.parametrize(
    "solve",
    [by_kernel(solvers.direct_solution), by_kernel(solvers.spectral_solution), by_gram],
)
def test_each_device_may_solve_for_its_own(solve):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    own = jax.sharding.PartitionSpec("data")
    alone = lambda w: solve(w[0])[None]
    every = jax.shard_map(alone, mesh=mesh, in_specs=own, out_specs=own)
    shape = jnp.ones((1, 3, 2))
    assert jax.eval_shape(every, shape).shape == jax.eval_shape(alone, shape).shape


def gram_matrix(units, rank):
    """B Bᵀ of a random B [12, rank] with its rows in these units, B, and a vector."""
    rng = np.random.default_rng(0)
    rows = units[:, None] * rng.normal(size=(12, rank))
    return rows @ rows.T, rows, rng.normal(size=12)


@pytest.mark.parametrize("damping", [0.0, 1e-9, 1e-3])
def test_units_do_not_decide_what_is_singular(damping):
    """The condition of F is 10¹⁶, that of its equilibrated form 10²."""
    matrix, _, v = gram_matrix(np.logspace(-4, 4, 12), 30)
    given = jnp.asarray(matrix, jnp.float32)
    found = jax.jit(solvers.direct_solution)(given, jnp.asarray(v, "f"), damping)
    exact = np.linalg.solve(np.asarray(given, float) + damping * np.eye(12), v)
    assert not found.fallback
    # Coordinate by coordinate: each in its own unit.
    np.testing.assert_allclose(found.value, exact, rtol=1e-3)


@pytest.mark.parametrize("damping", [0.0, 1e-14])
def test_the_pseudo_inverse_is_of_least_norm_in_the_units_given(damping):
    """And a singular F with a λ that is rounding beside it is still solved with it."""
    matrix, rows, v = gram_matrix(np.logspace(-1, 1, 12), 5)
    solve = jax.jit(solvers.direct_solution)
    found = solve(jnp.asarray(matrix), jnp.asarray(v), damping)
    assert found.fallback
    if damping:
        lost = v - rows @ np.linalg.lstsq(rows, v)[0]
        assert relative_error(damping * found.value, lost) < 0.2
    else:
        exact = np.linalg.pinv(rows.T) @ (np.linalg.pinv(rows) @ v)
        assert relative_error(found.value, exact) < 1e-8


@pytest.mark.parametrize("kept", [1, 3])
@pytest.mark.parametrize("solver", [None, FactoredTikhonov(), Eigenbasis()])
def test_kfac_without_damping_gives_the_least_norm_step_and_says_so(solver, kept):
    """A softmax of two classes: G has rank 1."""
    if solver is None and kept > 1:
        pytest.skip("metric.solve keeps nothing")
    curvature = ng.curvature.KFAC(MODEL, ng.curvature.Exact())
    tx = ng.scale_by_curvature(
        curvature, damping=0.0, solver=solver, refresh=ng.Refresh(inverses=kept)
    )
    step = jax.jit(lambda s: tx.update(GRADIENT, s, PARAMS, inputs=X))
    direction, state = step(tx.init(PARAMS))
    direction, state = step(state)
    matrix = curvature.at(PARAMS, X).dense()
    expected = np.linalg.pinv(matrix, rcond=1e-9) @ ravel(GRADIENT)
    assert relative_error(ravel(direction), expected) < 1e-9
    assert not state.health.skipped
    # A plain call of a solver has no way to report.
    assert bool(state.health.fallback) is (solver is None or kept > 1)


def test_a_singular_factor_without_trace_is_zero():
    """Nothing was seen: the least-norm step is 0, with λ it is V/λ."""
    metric = ng.curvature.KFAC(MODEL).metric(
        ng.curvature.KFAC(MODEL).init(PARAMS), PARAMS
    )
    for solver in (FactoredTikhonov(), Eigenbasis()):
        assert not np.any(ravel(solver(metric, GRADIENT, 0.0)))
        given = ravel(solver(metric, GRADIENT, 0.25))
        np.testing.assert_allclose(given, 4 * ravel(GRADIENT), rtol=1e-12)


SMALL = {"w": jnp.full((3, 2), 0.1), "n": jnp.zeros((3, 0)), "b": jnp.zeros(0)}
SMALL |= {"v": jnp.zeros((0, 2))}


@pytest.mark.parametrize(
    "name",
    [
        "kfac",
        "gram",
        "ekfac",
        "spring",
        "kfac_adaptive",
        "natural_gradient",
    ],
)
def test_leaves_without_entries_are_left_alone(name):
    apply = lambda p, x: x @ p["w"] + jnp.tanh(x @ p["n"] + p["b"][None]) @ p["v"]
    model = ng.Model(apply, MODEL.family, example_inputs=X[:1])
    y = np.arange(6) % 2
    loss = lambda p: model.loss(p, X, y)
    make = getattr(ng, name)
    updates = []
    for of, params in ((model, SMALL), (MODEL, PARAMS)):
        tx = make(of) if name == "kfac_adaptive" else make(0.1, of)
        more = {"value": loss(SMALL), "value_fn": of.loss, "targets": y}
        more = more if name == "kfac_adaptive" else {}
        gradient = {"w": GRADIENT["w"]} | {k: v for k, v in params.items() if k != "w"}
        step = jax.jit(lambda g, s, p, tx=tx, m=more: tx.update(g, s, p, inputs=X, **m))
        found, _ = step(gradient, tx.init(params), params)
        assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, params)
        updates.append(found["w"])
    assert np.any(updates[0])
    np.testing.assert_allclose(*updates, rtol=1e-9)

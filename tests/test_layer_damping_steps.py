"""Steps of optimizers with damping by layer."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layer_damping import (
    BY_LAYER,
    BY_LEAF,
    CASE,
    KEY,
    LAYER_OF,
    entries_of,
    problem,
    tree_of,
)
from optax_rows import ALIASED
from problems import ravel, relative_error

import natgrad as ng
from natgrad import curvature as curvatures


def updated(name, damping, params, x, y):
    """The first update by an optimizer."""
    tx = getattr(ng, name)(0.1, problem()[0], damping=damping)
    return tx.update(params, tx.init(params), params, inputs=x, targets=y)[0]


@pytest.mark.parametrize("name", ALIASED)
def test_equal_numbers_are_the_same_program_as_one(name):
    _, params, x, y = problem()

    def program(damping):
        update = lambda *batch: updated(name, damping, *batch)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(update)(params, x, y)))

    assert program(jax.tree.map(lambda _: 1e-2, params)) == program(1e-2)


def test_numbers_not_known_to_be_equal_give_the_same_step_as_one():
    _, params, x, y = problem()

    @jax.jit
    def both(damping, *batch):
        by_layer = dict(zip(["in", "out", "unused"], damping, strict=True))
        return updated("kfac", 0.05, *batch), updated("kfac", by_layer, *batch)

    one, three = both(jnp.full(3, 0.05), params, x, y)
    assert relative_error(ravel(three), ravel(one)) < 1e-12


def test_a_schedule_of_paths_and_what_health_says():
    """g/(f + λ_b), then the λ of the next count; a negative one skips the step."""
    model, params, x, _ = problem()
    curvature = curvatures.Diagonal(model)
    rule = lambda k: ng.ByPath({"": 0.1 / (k + 1), "out/w": 0.3 - 0.2 * k})
    tx = ng.scale_by_curvature(curvature, damping=rule)

    @jax.jit
    def steps(params, x):
        state, found = tx.init(params), []
        for _ in range(3):
            update, state = tx.update(params, state, params, inputs=x)
            found.append((ravel(update), optax.tree.get(state, "health")))
        return found, curvature.at(params, x).entries

    found, entries = steps(params, x)
    for k, (update, health) in enumerate(found):
        values = np.array([0.1 / (k + 1)] * 3 + [0.3 - 0.2 * k, 0.1 / (k + 1)])
        damping = entries_of(values, params)
        expected = ravel(params) / (entries + damping) * (k < 2)
        assert relative_error(update, expected) < 1e-12
        assert relative_error(health.damping, damping.mean()) < 1e-12
        assert health.skipped == (k == 2)
        assert health.residual < 1e-12
    assert health.reason == 2


def test_a_number_that_is_adapted_multiplies_damping_by_layer():
    """As levenberg_marquardt has it; all else is in place of that of the rule."""
    model, params, x, _ = problem()
    own = {"in": 0.1, "out": 0.3, "unused": 0.2}
    tx = ng.scale_by_curvature(curvatures.Diagonal(model), damping=own)
    state = tx.init(params)
    diagonal = jax.jit(lambda p, x: curvatures.Diagonal(model).at(p, x).diagonal())
    diagonal = diagonal(params, x)
    means = [leaf.mean() for leaf in jax.tree.leaves(diagonal)]
    means[4] = ravel(diagonal).mean()
    for damping, values in (
        (3.0, [0.3, 0.3, 0.9, 0.9, 0.6]),
        (ng.ByPath({"": 1, "in": 2}), [2, 2, 1, 1, 1]),
        (ng.Relative(0.2), 0.2 * np.array(means)),
    ):
        update, state = tx.update(params, state, params, inputs=x, damping=damping)
        damped = ravel(diagonal) + entries_of(values, params)
        assert relative_error(ravel(update), ravel(params) / damped) < 1e-12
        assert optax.tree.get(state, "health").residual < 1e-12


def test_spring_pulls_each_layer_with_its_own_damping():
    """(F + Λ) φ = g + Λ μ φ_before."""
    model, params, x, _ = problem()
    tx = ng.scale_by_spring(
        curvatures.Diagonal(model), damping=tree_of(list(BY_LEAF)), momentum=0.7
    )
    before = jax.tree.map(lambda leaf: leaf**2 + 1, params)

    @jax.jit
    def given(params, x):
        state = tx.init(params)._replace(direction=before)
        update, _ = tx.update(params, state, params, inputs=x)
        return ravel(update), curvatures.Diagonal(model).at(params, x).entries

    update, entries = given(params, x)
    damping = entries_of(BY_LEAF, params)
    right = ravel(params) + 0.7 * damping * ravel(before)
    assert relative_error(update, right / (entries + damping)) < 1e-12


def test_preconditioners_and_marquardt_take_it():
    """Preconditioners do not change the solution; Marquardt has F + Λ diag F; robust.

    What F decides it takes from F in its own units, S⁻¹ F S⁻¹ as one block.
    """
    model, params, x, y = problem()
    damping = tree_of(list(BY_LAYER))
    chosen = [curvatures.Jacobi(), curvatures.Nystrom(3), curvatures.Kronecker()]

    @jax.jit
    def given(params, x):
        forms = [curvatures.MatrixFree(model, preconditioner=p) for p in chosen]
        found = [f.at(params, x, y, KEY).solve(params, damping) for f in forms]
        metric = curvatures.Dense(model).at(params, x)
        scaled = ng.scaling.Marquardt(ng.solvers.cg)(metric, params, damping)
        marquardt = ng.scaling.Marquardt()
        robust = ng.solvers.RobustDamping(gamma=2.0)(metric, params, damping)
        decided = [ng.Relative(0.2), ng.ConditionNumber(11.0), ng.ScaleInvariant(0.2)]
        decided = [marquardt(metric, params, each) for each in decided]
        return metric.dense(), [
            ravel(tree) for tree in (robust, *found, scaled, *decided)
        ]

    dense, (robust, *found) = given(params, x)
    values = entries_of(BY_LAYER[LAYER_OF], params)
    inverse = np.linalg.inv(dense + np.diag(values))
    expected = inverse @ (dense + 2 * np.diag(values**2)) @ inverse @ ravel(params)
    assert relative_error(robust, expected) < 1e-9
    diagonal = np.where(np.diag(dense) > 0, np.diag(dense), 1)
    unitless = dense / np.sqrt(np.outer(diagonal, diagonal))
    dampings = [values] * 3 + [
        values * diagonal,
        0.2 * np.trace(unitless) / len(values) * diagonal,
        np.linalg.eigvalsh(unitless)[-1] / 10 * diagonal,
        0.2 * np.diag(unitless) * diagonal,
    ]
    seen = np.diag(dense) > 0
    for solution, own in zip(found, dampings, strict=True):
        damped = (dense + np.diag(own))[np.ix_(seen, seen)]
        expected = np.linalg.solve(damped, ravel(params)[seen])
        assert relative_error(ravel(solution)[seen], expected) < 1e-9


def test_a_part_of_the_parameters_takes_its_part_of_the_paths():
    """Inside optax.masked the λ of what is not seen are left alone."""
    model, params, x, _ = CASE.problem()
    damping = ng.ByPath({"in": 0.1, "out/w": 0.2, "out/b": 0.3})
    tx = ng.scale_by_curvature(curvatures.Diagonal(model), damping=damping)
    mask = {"in": False, "out": True}
    masked = optax.masked(tx, mask)

    @jax.jit
    def given(params, x):
        state = masked.init(params)
        update, _ = masked.update(params, state, params, inputs=x, model_params=params)
        return update, curvatures.Diagonal(model).at(params, x).diagonal()

    update, diagonal = given(params, x)
    for leaf, own in (("w", 0.2), ("b", 0.3)):
        expected = params["out"][leaf] / (diagonal["out"][leaf] + own)
        assert relative_error(update["out"][leaf], expected) < 1e-12

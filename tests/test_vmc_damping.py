"""Filters, caps and scale-invariant shifts of variational Monte Carlo."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import ravel, relative_error
from vmc_steps import DAMPING, MOMENTUM, filters, path, problem, stepped, traced

import natgrad as ng
from natgrad import curvature as curvatures
from natgrad.solvers import HardCutoff
from natgrad.solvers.damping import EntryDamping

KEY = jax.random.PRNGKey(3)
# Gram has 7 rows for 31 parameters with a label an example, 21 with all; "tall" has
# more rows than parameters.
KINDS = {
    "dense": curvatures.Dense,
    "block_diagonal": curvatures.BlockDiagonal,
    "diagonal": curvatures.Diagonal,
    "gram": lambda m: curvatures.Gram(m, curvatures.Empirical()),
    "tall": curvatures.Gram,
    "gram_blocks": curvatures.GramBlocks,
    "kfac": curvatures.KFAC,
    "ekfac": curvatures.EKFAC,
    "matrix_free": curvatures.MatrixFree,
}
# The leaves of each block.
BLOCKS = {
    "diagonal": [[0], [1], [2], [3]],
    "block_diagonal": [[0], [1], [2], [3]],
    "gram_blocks": [[0, 1], [2, 3]],
    "kfac": [[0, 1], [2, 3]],
    "ekfac": [[0, 1], [2, 3]],
}
WRITTEN_OUT = [name for name in KINDS if name != "matrix_free"]


# Filters ----------------------------------------------------------------------------

# What they make of a metric's eigenvalues `test_metric_functions` tests, of every kind:
# here, that a step takes it and says the spectrum; of one kind of each way to find
# eigenvalues, also where a filter needs none.
RULES = {"dense": ("hard", "smooth", "robust")}
RULES |= dict.fromkeys(("diagonal", "kfac", "matrix_free"), ("hard", "robust"))
rules_of = lambda name: RULES.get(name, ("hard",))


@functools.partial(jax.jit, static_argnums=0)
def filtered(name, params, x, y):
    """F, g, and update and health by each filter."""
    model = problem(name)[0]
    curvature = KINDS[name](model)
    matrix = curvature.at(params, x, y, KEY).dense()
    gradient = ravel(jax.grad(model.loss)(params, x, y))
    steps = {}
    for rule in rules_of(name):
        solver, _ = filters(0.0)[rule]
        tx = ng.scale_by_curvature(curvature, damping=DAMPING, solver=solver)
        steps[rule] = stepped(tx, model, params, x, y)
    return matrix, gradient, steps


@pytest.mark.parametrize("name", KINDS)
def test_filters_of_every_kind_are_their_eigen_formulas_and_say_the_spectrum(name):
    _, params, x, y = problem(name)
    matrix, gradient, steps = filtered(name, params, x[0], y[0])
    values, vectors = np.linalg.eigh(matrix)
    values = np.maximum(values, 0)
    condition = (values[-1] + DAMPING) / (values[0] + DAMPING)
    rank = np.sum(values > values.size * np.finfo(float).eps * values[-1])
    effective = np.sum(values / (values + DAMPING))
    for rule, (update, health) in steps.items():
        _, weights = filters(values[-1])[rule]
        expected = vectors * weights(values) @ vectors.T @ gradient
        # Lanczos's method finds max s and f(F) v of an operator.
        assert relative_error(update, expected) < (
            1e-9 if name == "matrix_free" else 1e-12
        ), rule
        # Two solves of those that find no eigenvalues for one.
        by_factors = rule == "robust" and name not in ("diagonal", "kfac", "ekfac")
        if name == "matrix_free" or by_factors:
            assert health.condition == 0
            continue
        assert relative_error(health.condition, condition) < 1e-9
        assert health.rank == rank
        assert relative_error(health.effective_rank, effective) < 1e-9


def test_what_is_not_known_of_the_spectrum_is_0_and_no_nan():
    model, params, x, y = problem("dense")
    tx = ng.scale_by_curvature(curvatures.Dense(model), damping=DAMPING)
    run = jax.jit(lambda params: stepped(tx, model, params, x[0], y[0])[1])
    health = run(params)
    for name in ("condition", "rank", "effective_rank"):
        assert getattr(health, name) == 0
        assert getattr(optax.tree.get(tx.init(params), "health"), name) == 0


def test_optimizers_take_filters():
    """natural_gradient, gram: −η f(F) g; spring: the recursion with f."""
    model, params, x, y = problem("gram", 3)
    solver = HardCutoff(0.05)
    cutting = lambda s: (s > 0.05 * s[-1]) / (s + DAMPING)
    options = {"damping": DAMPING, "solver": solver, "trust_region": None}
    labels = curvatures.Empirical()
    form = lambda m: curvatures.Dense(m, labels)

    @jax.jit
    def run(params):
        alone = (
            ng.natural_gradient(0.5, model, curvature=form, **options),
            ng.gram(0.5, model, labels=labels, **options),
        )
        return [stepped(tx, model, params, x[0], y[0])[0] for tx in alone]

    form = lambda m: curvatures.Gram(m, labels)
    tx = ng.spring(-1.0, model, momentum=MOMENTUM, curvature=form, **options)
    updates, gradients, rows, _ = path(tx, model, params, x, y)
    before = np.zeros(rows.shape[2])
    for update, gradient, row in zip(updates, gradients, rows, strict=True):
        matrix = row.T @ row
        values, vectors = np.linalg.eigh(matrix)
        apply = vectors * cutting(np.maximum(values, 0)) @ vectors.T
        pull = MOMENTUM * before
        expected = pull + apply @ (gradient - matrix @ pull)
        assert relative_error(update, expected) < 1e-11
        if not before.any():
            for given in run(params):
                assert relative_error(given, -0.5 * expected) < 1e-11
        before = expected


def test_filters_refuse_a_damping_by_layer():
    model, params, x, y = problem("dense")
    for damping in (ng.ByPath({"in": 1e-2, "": 1e-3}), ng.ScaleInvariant(0.1)):
        tx = ng.scale_by_curvature(
            curvatures.Dense(model), damping=damping, solver=HardCutoff(0.1)
        )
        with pytest.raises(ValueError, match="one λ for all parameters"):
            traced(tx, model, params, x[0], y[0])


# Damping that F decides -------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def capped(name, cap, params, x, y):
    """F and Λ by entry, the update and the gradient."""
    model = problem(name)[0]
    curvature = KINDS[name](model)
    metric = curvature.at(params, x, y, KEY)
    tx = ng.scale_by_curvature(curvature, damping=ng.ConditionNumber(cap))
    update, health = stepped(tx, model, params, x, y)
    damping = ng.solvers.damping.resolve_damping(ng.ConditionNumber(cap), metric)
    entries = ng.solvers.damping.entries(damping, metric) * jnp.ones(update.size)
    gradient = ravel(jax.grad(model.loss)(params, x, y))
    return metric.dense(), entries, update, gradient, health.damping


@pytest.mark.parametrize("name", KINDS)
def test_a_cap_on_the_condition_number_is_kept_by_each_block(name):
    cap, (_, params, x, y) = 50.0, problem(name)
    matrix, entries, update, gradient, mean = capped(name, cap, params, x[0], y[0])
    layout = ng.tree.Layout.of(params)
    for block in BLOCKS.get(name, [[0, 1, 2, 3]]):
        at = np.concatenate([layout.positions(leaf) for leaf in block])
        values = np.linalg.eigvalsh(matrix[np.ix_(at, at)])
        expected = np.full(at.size, values[-1] / (cap - 1))
        assert relative_error(entries[at], expected) < 1e-10
        condition = (values[-1] + entries[at]) / (max(values[0], 0) + entries[at])
        assert np.all(condition <= cap * (1 + 1e-9))
        if values[0] < 1e-13 * values[-1]:
            assert relative_error(condition, np.full(at.size, cap)) < 1e-9
    damped = np.asarray(matrix) + np.diag(entries)
    rtol = 1e-4 if name == "matrix_free" else 1e-9
    assert relative_error(update, np.linalg.solve(damped, gradient)) < rtol
    assert relative_error(mean, np.mean(entries)) < 1e-12


def test_a_cap_is_a_number_above_one_and_a_number_multiplies_its_damping():
    for cap in (1.0, 0.5, np.inf, np.nan):
        with pytest.raises(ValueError, match="finite number above 1"):
            ng.ConditionNumber(cap)
    model, params, x, y = problem("dense")
    rule = ng.ConditionNumber(50.0)
    tx = ng.scale_by_curvature(curvatures.Dense(model), damping=rule)
    gradient = jax.grad(model.loss)(params, x[0], y[0])

    @jax.jit
    def run(factor):
        state = tx.init(params)
        _, state = tx.update(gradient, state, params, inputs=x[0], damping=factor)
        return state.health.damping

    assert relative_error(run(3.0), 3 * run(1.0)) < 1e-12
    assert repr(rule) == "ConditionNumber(50)"


SCALED = [name for name in KINDS if name not in ("kfac", "ekfac")]


@functools.partial(jax.jit, static_argnums=0)
def shifted(name, scale, units, params, x, y):
    """F, update, gradient, and the update of the model in other units."""
    model = problem(name)[0]
    layout = ng.tree.Layout.of(params)
    times = lambda tree, u: layout.unravel(layout.ravel(tree) * u)
    other = ng.Model(
        lambda p, x: model.apply(times(p, units), x),
        model.family,
        example_inputs=model.example_inputs,
    )
    updates = []
    for each, at in ((model, params), (other, times(params, 1 / units))):
        tx = ng.scale_by_curvature(KINDS[name](each), damping=ng.ScaleInvariant(scale))
        updates.append(stepped(tx, each, at, x, y)[0])
    matrix = KINDS[name](model).at(params, x, y, KEY).dense()
    return matrix, *updates, ravel(jax.grad(model.loss)(params, x, y))


@pytest.mark.parametrize("name", SCALED)
def test_the_scale_invariant_shift_adds_multiples_of_the_diagonal(name):
    """(F + c diag F)⁻¹ g, which parameters in other units do not change."""
    _, params, x, y = problem(name)
    units = jnp.exp(jnp.sin(jnp.arange(ravel(params).size) * 2.0))
    matrix, update, other, gradient = shifted(name, 0.1, units, params, x[0], y[0])
    matrix = np.asarray(matrix)
    shift = 0.1 * np.diag(np.diag(matrix))
    rtol = 1e-4 if name == "matrix_free" else 1e-9
    assert relative_error(update, np.linalg.solve(matrix + shift, gradient)) < rtol
    if name not in ("matrix_free", "gram_blocks"):  # the other model has no layers
        assert relative_error(other * units, update) < 1e-9


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_layers_eigenbases_refuse_a_shift_by_parameter(name):
    model, params, x, y = problem(name)
    tx = ng.scale_by_curvature(KINDS[name](model), damping=ng.ScaleInvariant(0.1))
    with pytest.raises(ValueError, match="one number a layer"):
        traced(tx, model, params, x[0], y[0])


def test_parameters_without_effect_stay_under_a_scale_invariant_shift():
    model, params, x, y = problem("gram")
    whole = params | {"idle": jnp.ones(2)}
    idle = ng.Model(
        lambda p, x: model.apply({k: p[k] for k in params}, x), model.family
    )
    curvature = curvatures.Gram(idle, curvatures.Empirical())
    tx = ng.scale_by_curvature(curvature, damping=ng.ScaleInvariant(0.1))
    run = jax.jit(lambda p, x, y: stepped(tx, idle, p, x, y))
    update, health = run(whole, x[0], y[0])
    places = ng.tree.Layout.of(whole).positions(0)
    assert (np.asarray(update)[places] == 0).all()
    assert np.isfinite(update).all()
    assert not health.skipped


def test_functions_of_a_metric_damped_by_parameter_are_those_of_its_matrix():
    _, params, x, y = problem("gram")
    size = ravel(params).size
    own = 0.1 + jnp.cos(jnp.arange(size)) ** 2

    @functools.partial(jax.jit, static_argnums=0)
    def run(name, params, x, y):
        metric = KINDS[name](problem(name)[0]).at(params, x, y, KEY)
        v, damping = metric.layout.unravel(own + 1), EntryDamping(own)
        f = lambda s: jnp.exp(-s) / s
        return metric.dense(), (
            ravel(metric.solve(v, damping)),
            ravel(metric.function(f, v, damping)),
            metric.logdet(damping),
            ravel(metric.inverse_diagonal(damping)),
        )

    for name in ("dense", "gram", "gram_blocks", "block_diagonal", "diagonal"):
        matrix, given = run(name, params, x[0], y[0])
        damped = np.asarray(matrix) + np.diag(own)
        values, vectors = np.linalg.eigh(damped)
        expected = (
            np.linalg.solve(damped, own + 1),
            vectors * (np.exp(-values) / values) @ vectors.T @ (own + 1),
            np.sum(np.log(values)),
            np.diag(np.linalg.inv(damped)),
        )
        for one, other in zip(given, expected, strict=True):
            assert relative_error(one, other) < 1e-10, name

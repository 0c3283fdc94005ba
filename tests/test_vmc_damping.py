"""Filters, caps, scale-invariant shifts and momenta of variational Monte Carlo."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, ravel, relative_error

import natgrad as ng
from natgrad import curvature as curvatures
from natgrad.solvers import HardCutoff, RobustDamping, SmoothCutoff
from natgrad.solvers.damping import EntryDamping

KEY = jax.random.PRNGKey(3)
CASE = CASES["categorical"]
DAMPING, MOMENTUM = 0.03, 0.9
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


def filters(largest):
    """(a solver, what it does to eigenvalues in numpy), by name."""
    cutoff = 0.01 * largest
    return {
        "hard": (HardCutoff(0.01), lambda s: (s > cutoff) / (s + DAMPING)),
        "smooth": (
            SmoothCutoff(0.01),
            lambda s: s**6 / (s**6 + cutoff**6) / (s + DAMPING),
        ),
        "robust": (
            RobustDamping(4.0),
            lambda s: (s + 4 * DAMPING**2) / (s + DAMPING) ** 2,
        ),
    }


def problem(name, count=1):
    """(model, parameters, batches of inputs and labels)."""
    size = 20 if name == "tall" else 7
    model, params, x, y = CASE.problem(examples=size * count)
    return model, params, x.reshape(count, size, -1), y.reshape(count, size)


def stepped(tx, model, params, x, y):
    """(the update, health)."""
    gradient = jax.grad(model.loss)(params, x, y)
    updates, state = tx.update(gradient, tx.init(params), params, inputs=x, targets=y)
    return ravel(updates), optax.tree.get(state, "health")


def traced(tx, model, params, x, y):
    """Errors of `stepped` without its values."""
    jax.eval_shape(lambda params: stepped(tx, model, params, x, y)[0], params)


def path(tx, model, params, x, y, record=lambda state: ()):
    """(parameters after, update, gradient, rows B, what is recorded) of each step.

    B [N, P] are the gradients of −log p of the examples over √N, and g = Bᵀ e with
    e = 1/√N: F = Bᵀ B is that of `Empirical` labels.
    """
    layout = ng.tree.Layout.of(params)

    def losses(v, x, y):
        return -model.log_prob(layout.unravel(v), x, y)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(model.loss)(params, *batch)
        rows = jax.jacrev(losses)(ravel(params), *batch) / np.sqrt(len(batch[1]))
        updates, state = tx.update(
            gradient, state, params, inputs=batch[0], targets=batch[1]
        )
        params = optax.apply_updates(params, jax.tree.map(lambda u: -0.2 * u, updates))
        return (params, state), (ravel(updates), ravel(gradient), rows, record(state))

    run = jax.jit(
        lambda params, x, y: jax.lax.scan(step, (params, tx.init(params)), (x, y))[1]
    )
    return jax.tree.map(np.asarray, run(params, x, y))


# Filters ----------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=0)
def filtered(name, params, x, y):
    """F, g, and update and health by each filter."""
    model = problem(name)[0]
    curvature = KINDS[name](model)
    matrix = curvature.at(params, x, y, KEY).dense()
    gradient = ravel(jax.grad(model.loss)(params, x, y))
    steps = {}
    for rule, (solver, _) in filters(0.0).items():
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
    for rule, (_, weights) in filters(values[-1]).items():
        update, health = steps[rule]
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


# Momenta ----------------------------------------------------------------------------


def test_spring_takes_dampings_that_the_metric_decides():
    """(F + Λ) φ = g + Λ μ φ_before with Λ = c diag F, and with a cap."""
    model, params, x, y = problem("gram", 3)
    rules = {
        ng.ScaleInvariant(0.2): lambda matrix: 0.2 * np.diag(matrix),
        ng.ConditionNumber(30.0): lambda m: np.linalg.eigvalsh(m)[-1] / 29 + 0 * m[0],
    }
    for rule, of in rules.items():
        tx = ng.scale_by_spring(
            curvatures.Gram(model, curvatures.Empirical()),
            damping=rule,
            momentum=MOMENTUM,
        )
        before = 0.0
        for update, gradient, row, _ in zip(
            *path(tx, model, params, x, y)[:3], range(3), strict=True
        ):
            matrix = row.T @ row
            own = of(matrix)
            right = gradient + own * MOMENTUM * before
            before = np.linalg.solve(matrix + np.diag(own), right)
            assert relative_error(update, before) < 1e-9


@pytest.mark.parametrize("rows", [7, None])
def test_the_momentum_of_the_principal_range_is_that_of_the_paper(rows):
    """Equations 4.4 to 4.7 in numpy, with eigenvectors of B Bᵀ, or of Bᵀ B."""
    model, params, x, y = problem("gram", 4)
    tx = ng.scale_by_spring(
        curvatures.Gram(model, curvatures.Empirical()),
        damping=DAMPING,
        momentum=ng.PrincipalRange(rows),
    )
    record = lambda state: (state.momentum, state.principal[2:])
    updates, gradients, matrices, (momenta, said) = path(
        tx, model, params, x, y, record
    )
    before, last = np.zeros(matrices.shape[2]), None
    for k, row in enumerate(matrices):
        left, singular, right = np.linalg.svd(row, full_matrices=False)
        s = singular[singular**2 > len(row) * np.finfo(float).eps * singular[0] ** 2]
        alpha, rank = np.sum(s**2) ** 2 / np.sum(s**4), s.size
        space = (left if rows else right.T)[:, : int(np.ceil(alpha))]
        momentum, overlap = 0.0, 0.0
        if last is not None:
            most = np.sqrt(min(space.shape[1], last.shape[1]))
            overlap = np.linalg.norm(space.T @ last) / most
            momentum = 1 - (1 - np.sqrt(overlap)) * (1 - (alpha / rank) ** 0.25)
        assert relative_error(momenta[k], momentum) < 1e-9
        for given, expected in zip(said, (alpha, rank, overlap), strict=True):
            assert abs(given[k] - expected) < 1e-9 * (1 + expected)
        damped = row.T @ row + DAMPING * np.eye(before.size)
        pulled = gradients[k] + DAMPING * momentum * before
        before, last = np.linalg.solve(damped, pulled), space
        assert relative_error(updates[k], before) < 1e-9
    assert 0 < momenta[-1] < 1


def test_the_principal_range_refuses_other_rows_and_large_matrices():
    model, params, x, y = problem("gram")
    empirical = curvatures.Gram(model, curvatures.Empirical())

    def update(curvature, rows, **batch):
        tx = ng.scale_by_spring(curvature, momentum=ng.PrincipalRange(rows))
        return tx.update(params, tx.init(params), params, **batch)

    for curvature, rows, message in (
        (empirical, 8, "has 7 score columns"),
        (curvatures.Dense(model), 7, "got a DenseMetric"),
    ):
        with pytest.raises(ValueError, match=message):
            update(curvature, rows, inputs=x[0], targets=y[0])
    with pytest.raises(ValueError, match=r"update\(gradient, state, params, inputs=x"):
        update(curvatures.Dense(model), None)
    large = ng.tree.Layout.of(jax.ShapeDtypeStruct((5000,), "float32"))
    with pytest.raises(ValueError, match="give rows="):
        ng.PrincipalRange().init(large)


def test_a_skipped_step_keeps_the_principal_space_and_the_variance():
    model, params, x, y = problem("gram", 2)
    curvature = curvatures.Gram(model, curvatures.Empirical())
    transforms = (
        ng.scale_by_spring(curvature, momentum=ng.PrincipalRange(7)),
        ng.scale_by_march(curvature),
    )

    @jax.jit
    def run(params):
        gradient = jax.grad(model.loss)(params, x[0], y[0])
        states = []
        for tx in transforms:
            kwargs = {"inputs": x[0], "targets": y[0]}
            _, good = tx.update(gradient, tx.init(params), params, **kwargs)
            bad = jax.tree.map(lambda g: g * jnp.nan, gradient)
            _, after = tx.update(bad, good, params, **kwargs)
            _, blind = tx.update(
                gradient, good, params, inputs=x[0] * jnp.nan, targets=y[0]
            )
            states.append((good, after, blind))
        return states

    for good, *others in run(params):
        for state in others:
            assert optax.tree.get(state, "skipped")
            for name in ("principal", "variance", "direction"):
                one, other = (optax.tree.get(s, name, ()) for s in (good, state))
                for a, b in zip(
                    jax.tree.leaves(one), jax.tree.leaves(other), strict=True
                ):
                    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", [curvatures.Gram, curvatures.Dense])
def test_march_is_the_update_of_its_paper(form):
    """Equations S17 to S23 in sample space, with v_0 = 1 and ε = 1e-8."""
    model, params, x, y = problem("gram", 4)
    decay, strength = 0.8, 0.05
    tx = ng.scale_by_march(
        form(model, curvatures.Empirical()),
        damping=strength,
        momentum=MOMENTUM,
        variance_decay=decay,
    )
    updates, _, matrices, variances = path(
        tx, model, params, x, y, lambda state: ravel(state.variance)
    )
    step, variance = np.zeros(matrices.shape[2]), np.ones(matrices.shape[2])
    for k, rows in enumerate(matrices):
        e = np.ones(len(rows)) / np.sqrt(len(rows))
        phi, inverse = MOMENTUM * step, 1 / np.maximum(np.sqrt(variance), 1e-8)
        kernel = rows * inverse @ rows.T + strength * np.eye(len(rows))
        new = phi + inverse * (rows.T @ np.linalg.solve(kernel, e - rows @ phi))
        variance = decay * variance + (new - step) ** 2
        step = new
        assert relative_error(updates[k], step) < 1e-9
        assert relative_error(variances[k], variance) < 1e-9


def test_the_alias_of_march_lowers_the_loss_and_refuses_kfac():
    model, params, x, y = CASE.problem(examples=30)
    tx = ng.march(0.1, model, damping=1e-2, constraint=1e-2)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(gradient, state, params, inputs=x)
        length = optax.tree.norm(updates)
        return (optax.apply_updates(params, updates), state), (loss, length)

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=40)[1])
    losses, lengths = run(params)
    assert losses[-1] < 0.8 * losses[0]
    assert (lengths <= 0.1 + 1e-12).all()
    refused = ng.march(0.1, model, curvature=curvatures.KFAC)
    with pytest.raises(ValueError, match="one number a layer"):
        traced(refused, model, params, x, y)
    with pytest.raises(ValueError, match=r"variance_decay must lie in \[0, 1\]"):
        ng.march(0.1, model, variance_decay=1.5)

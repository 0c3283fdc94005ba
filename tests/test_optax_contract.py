"""Every curvature and every alias is a drop-in optax transformation.

Each contract is tested by what it means. The oracle is numpy: softmax regression, whose
Jacobian is written down by hand, so the Fisher information, its empirical cousin and
the gradient come from no line of the library.
"""

from __future__ import annotations

import collections
import functools
import inspect
import pickle
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

import natgrad as ng
from natgrad import optimizers

N, FEATURES, CLASSES, LAMBDA, RATE = 6, 2, 3, 0.3, 0.5
BIAS = slice(0, CLASSES)  # of the parameter vector [b, w], in ravel_pytree order
WEIGHT = slice(CLASSES, None)


def draw(seed, count=N):
    """A batch (x [N, I], y [N])."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, FEATURES)), rng.integers(0, CLASSES, count)


def start(dtype=jnp.float64):
    """Parameters in fresh buffers, so that a test may donate them."""
    rng = np.random.default_rng(1)
    params = {
        "w": rng.normal(size=(FEATURES, CLASSES)),
        "b": rng.normal(size=CLASSES),
    }
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype), params)


# Contracts need no fast code, and half the time of these tests is the compiler's.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

X, Y = draw(0)
MODEL = ng.Model(
    lambda params, x: x @ params["w"] + params["b"][None],
    ng.families.Categorical(),
    example_inputs=X[:1],
)


# The oracle, in numpy ---------------------------------------------------------------


def flat(tree):
    """A tree as a vector, leaves in the order of their names."""
    return np.concatenate([np.asarray(tree[name]).ravel() for name in sorted(tree)])


class Oracle(NamedTuple):
    """What numpy knows of a batch at given parameters."""

    gradient: np.ndarray
    fisher: np.ndarray
    empirical: np.ndarray


def oracle(params, x=X, y=Y):
    x, w, b = np.asarray(x), np.asarray(params["w"]), np.asarray(params["b"])
    eye = np.eye(CLASSES)
    logits = x @ w + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    J = np.stack([np.hstack([eye, np.kron(row, eye)]) for row in x])  # [N, C, P]
    in_z = p[:, :, None] * eye - p[:, :, None] * p[:, None, :]  # [N, C, C]
    g = np.einsum("ncp,nc->np", J, p - eye[np.asarray(y)])
    return Oracle(
        g.mean(0), np.einsum("ncp,ncd,ndq->pq", J, in_z, J) / len(x), g.T @ g / len(x)
    )


def damped_solve(matrix, v, damping=LAMBDA):
    return np.linalg.solve(matrix + damping * np.eye(len(v)), v)


def blocks(matrix):
    """The diagonal blocks of the two leaves."""
    kept = np.zeros_like(matrix)
    for part in (BIAS, WEIGHT):
        kept[part, part] = matrix[part, part]
    return kept


# Name -> the matrix this curvature should be, of an Oracle. A curvature without a line
# here is held to the matrix that its own statistics describe.
EXPECTED = {
    "dense": lambda known: known.fisher,
    "kl_hessian": lambda known: known.fisher,
    "matrix_free": lambda known: known.fisher,
    "block_diagonal": lambda known: blocks(known.fisher),
    "diagonal": lambda known: np.diag(np.diag(known.fisher)),
    "empirical": lambda known: known.empirical,
}
EVERY = pytest.mark.parametrize("name", list(ng.CURVATURES))
# For what compiles large programs: one of each kind is quick, the others are slow.
QUICK = {"dense", "matrix_free", "sampled"}
EVERY_SLOWLY = pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in ng.CURVATURES
    ],
)


def curvature_of(name):
    return ng.CURVATURES[name](MODEL)


def expected_matrix(name, params, curvature_state):
    if name in EXPECTED:
        return EXPECTED[name](oracle(params))
    statistics = curvature_state.statistics
    return np.asarray(curvature_of(name).metric(statistics, params, X, Y).dense())


# The aliases, found by their signature so that a new one is tested from its first day.
ALIASES = {
    name: function
    for name, function in vars(optimizers).items()
    if inspect.isfunction(function)
    and not name.startswith("_")
    and function.__module__ == optimizers.__name__
    and list(inspect.signature(function).parameters)[:2] == ["learning_rate", "model"]
}
EVERY_ALIAS = pytest.mark.parametrize("alias", list(ALIASES))
TARGETS_TOO = {"empirical_fisher"}
# Alias -> the curvature it stands for; those with exact oracles.
STANDS_FOR = {
    "natural_gradient": "dense",
    "diagonal_fisher": "diagonal",
    "empirical_fisher": "empirical",
    "matrix_free": "matrix_free",
}


def equal(a, b, rtol, atol=0.0):
    """Two trees of one structure, leaf by leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


def describe(tree):
    """Structure, shapes and dtypes."""
    leaves = [
        (leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)
    ]
    return jax.tree.structure(tree), leaves


@jax.jit
def gradient_of(params, x=X, y=Y):
    return jax.grad(MODEL.loss)(params, x, y)


def find(state):
    """The one state of `scale_by_curvature` in an optax state."""
    is_state = lambda node: hasattr(node, "statistics")
    nodes = jax.tree.leaves(state, is_leaf=is_state)
    (found,) = [node for node in nodes if is_state(node)]
    return found


def jitted_update(tx, **fixed):
    """(grads, state, params, extra arguments) -> update, compiled."""
    return jit(
        lambda grads, state, params, **extra: tx.update(
            grads, state, params, **fixed, **extra
        )
    )


# Every curvature: one compiled step and one batched scan, shared by all contracts

TRACES = collections.Counter()


class Programs(NamedTuple):
    """One step, compiled; 100 steps; 100 steps of several members, compiled."""

    step: Callable
    run: Callable
    batched: Callable


def transformation(name, damping=LAMBDA, rate=RATE, seed=0):
    return optax.chain(
        ng.scale_by_curvature(curvature_of(name), damping=damping, seed=seed),
        optax.scale_by_learning_rate(rate),
    )


@functools.cache
def programs(name):
    def step(params, state, damping, rate):
        tx = transformation(name, damping, rate)
        grads = gradient_of(params)
        updates, state = tx.update(grads, state, params, inputs=X, targets=Y)
        return optax.apply_updates(params, updates), state

    def counted(*arguments):
        TRACES[name] += 1
        return step(*arguments)

    def run(seed, damping, rate):
        state = transformation(name, seed=seed).init(start())
        one = lambda carry, _: (step(*carry, damping, rate), None)
        return jax.lax.scan(one, (start(), state), None, length=100)[0]

    return Programs(jit(counted), run, jit(jax.vmap(run)))


@EVERY
def test_an_update_is_the_damped_solve_of_the_batch_metric(name, tolerance):
    params, state = start(), transformation(name).init(start())
    stepped, state = programs(name).step(params, state, LAMBDA, RATE)
    matrix = expected_matrix(name, params, find(state))
    step = damped_solve(matrix, oracle(params).gradient)
    rtol = tolerance("solve")
    np.testing.assert_allclose(flat(params) - flat(stepped), RATE * step, rtol=rtol)
    health = optax.tree.get(state, "health")
    assert health.damping == LAMBDA
    assert not health.skipped
    assert health.residual < rtol
    decrease = oracle(params).gradient @ step - step @ matrix @ step / 2
    np.testing.assert_allclose(health.predicted_decrease, decrease, rtol=rtol)


@EVERY
def test_the_state_keeps_its_structure_and_the_step_is_traced_once(name):
    params, state = start(), transformation(name).init(start())
    before = describe((params, state))
    for k in range(5):
        params, state = programs(name).step(params, state, LAMBDA, RATE)
        assert describe((params, state)) == before
        assert find(state).count == k + 1
    assert TRACES[name] == 1


@EVERY_SLOWLY
def test_100_scanned_steps_of_8_vmapped_members_are_python_loops(name, tolerance):
    seeds = jnp.arange(8)
    dampings, rates = jnp.geomspace(0.05, 2.0, 8), jnp.linspace(0.1, 0.8, 8)
    params, state = programs(name).batched(seeds, dampings, rates)
    for member, seed in enumerate(seeds):
        alone, its_state = start(), transformation(name, seed=seed).init(start())
        for _ in range(100):
            alone, its_state = programs(name).step(
                alone, its_state, dampings[member], rates[member]
            )
        of_member = lambda leaf, member=member: leaf[member]
        equal(jax.tree.map(of_member, params), alone, tolerance("solve"))
        assert describe(jax.tree.map(of_member, state)) == describe(its_state)
        assert jnp.array_equal(find(state).key[member], find(its_state).key)
    assert len(np.unique(np.round(params["w"][:, 0, 0], 6))) == 8


@pytest.mark.parametrize("name", ["sampled"])
def test_a_scan_over_100_steps_is_the_python_loop(name, tolerance):
    params, state = start(), transformation(name, seed=3).init(start())
    for _ in range(100):
        params, state = programs(name).step(params, state, LAMBDA, RATE)
    scanned = jit(programs(name).run)(3, LAMBDA, RATE)
    equal(params, scanned[0], tolerance("solve"))
    assert find(scanned[1]).count == 100


# Three spellings of one step --------------------------------------------------------


@EVERY_SLOWLY
def test_statistics_and_observe_give_the_update_that_inputs_give(name, tolerance):
    curvature = curvature_of(name)
    tx = transformation(name)

    @jit
    def three(params, state):
        grads = gradient_of(params)
        key = jax.random.split(find(state).key)[1]
        loss, same_grads, statistics = curvature.value_and_grad(params, X, Y, key)
        batch = {"inputs": X, "targets": Y} if curvature.instantaneous else {}
        given = tx.update(grads, state, params, inputs=X, targets=Y)
        fast = tx.update(same_grads, state, params, statistics=statistics, **batch)
        if curvature.instantaneous:
            return given, fast, given, (loss, same_grads)
        seen = ng.observe(curvature, state, params, inputs=X, targets=Y)
        return given, fast, tx.update(grads, seen, params), (loss, same_grads)

    params = start()
    given, fast, seen, (loss, grads) = three(params, tx.init(params))
    equal(given[0], fast[0], tolerance("solve"))
    equal(given[0], seen[0], tolerance("solve"))
    assert describe(given) == describe(fast) == describe(seen)
    np.testing.assert_allclose(loss, MODEL.loss(params, X, Y))
    equal(grads, gradient_of(params), tolerance("identity"))


def test_a_plain_update_keeps_using_what_was_observed_last(tolerance):
    curvature = curvature_of("dense")
    tx = ng.scale_by_curvature(curvature, damping=LAMBDA)
    params, other = start(), draw(9)[0]
    state = tx.init(params)
    see = jit(lambda state, x: ng.observe(curvature, state, params, inputs=x))
    for x in (X, other):
        state = see(state, x)
    plain = jitted_update(tx)
    for _ in range(2):
        step, state = plain(gradient_of(params), state, params)
        expected = damped_solve(oracle(params, other).fisher, oracle(params).gradient)
        np.testing.assert_allclose(flat(step), expected, tolerance("solve"))
    assert find(state).estimates == 2
    assert find(state).count == 2


def test_observe_finds_the_curvature_however_deep_the_state(tolerance):
    curvature = curvature_of("dense")
    inner = lambda learning_rate, damping: optax.chain(
        optax.identity(),
        ng.scale_by_curvature(curvature, damping=damping),
        optax.scale_by_learning_rate(learning_rate),
    )
    tx = optax.MultiSteps(
        optax.chain(
            optax.add_decayed_weights(0.0),
            optax.inject_hyperparams(inner)(learning_rate=RATE, damping=LAMBDA),
        ),
        every_k_schedule=2,
    )

    @jit
    def two(params, state):
        grads = gradient_of(params)
        for _ in range(2):
            state = ng.observe(curvature, state, params, inputs=X)
            updates, state = tx.update(grads, state, params)
        return updates, state

    params = start()
    updates, state = two(params, tx.init(params))
    known = oracle(params)
    step = -RATE * damped_solve(known.fisher, known.gradient)
    rtol = tolerance("identity", "float32")  # MultiSteps accumulates in float32
    np.testing.assert_allclose(flat(updates), step, rtol)
    assert describe(state) == describe(tx.init(params))


def test_observe_refreshes_a_masked_part(tolerance):
    curvature = curvature_of("dense")
    tx = optax.masked(
        ng.scale_by_curvature(curvature, damping=LAMBDA), {"w": True, "b": False}
    )
    params = start()
    part = {"w": params["w"], "b": optax.MaskedNode()}

    @jit
    def update(state):
        seen = ng.observe(curvature, state, part, inputs=X, model_params=params)
        return tx.update(gradient_of(params), seen, params, model_params=params)

    step, _ = update(tx.init(params))
    known = oracle(params)
    expected = damped_solve(known.fisher[WEIGHT, WEIGHT], known.gradient[WEIGHT])
    np.testing.assert_allclose(step["w"].ravel(), expected, tolerance("solve"))


# Moving average, schedules, keys ----------------------------------------------------


@pytest.mark.parametrize("name", ["dense", "diagonal"])
def test_decay_is_an_average_with_bias_correction(name, tolerance):
    decay, params = 0.7, start()
    tx = ng.scale_by_curvature(curvature_of(name), damping=LAMBDA, decay=decay)
    state, average, weight = tx.init(params), 0.0, 0.0
    update = jitted_update(tx)
    for k in range(5):
        x, y = draw(k)
        known = oracle(params, x, y)
        average = decay * average + (1 - decay) * EXPECTED[name](known)
        weight = decay * weight + (1 - decay)
        step, state = update(gradient_of(params, x, y), state, params, inputs=x)
        expected = damped_solve(average / weight, known.gradient)
        np.testing.assert_allclose(flat(step), expected, tolerance("solve"))
        params = optax.apply_updates(params, jax.tree.map(jnp.negative, step))
    assert find(state).estimates == 5


def test_a_damping_schedule_sees_the_count_of_steps(tolerance):
    schedule = lambda count: 0.1 * (count + 1)
    tx = ng.scale_by_curvature(curvature_of("dense"), damping=schedule)
    params = start()
    state, update, known = tx.init(params), jitted_update(tx, inputs=X), oracle(params)
    for k in range(3):
        step, state = update(gradient_of(params), state, params)
        expected = damped_solve(known.fisher, known.gradient, schedule(k))
        np.testing.assert_allclose(flat(step), expected, tolerance("solve"))
        np.testing.assert_allclose(state.health.damping, schedule(k))


@EVERY_ALIAS
def test_an_alias_takes_schedules_of_damping_and_learning_rate(alias, tolerance):
    rates = optax.linear_schedule(0.5, 0.1, 4)
    dampings = optax.exponential_decay(1.0, 1, 0.5)
    scheduled = ALIASES[alias](rates, MODEL, damping=dampings)

    @jit
    def both(params, state, rate, damping):
        grads, batch = gradient_of(params), {"inputs": X, "targets": Y}
        constant = ALIASES[alias](rate, MODEL, damping=damping)
        as_constant = (state[0], optax.EmptyState())
        expected, _ = constant.update(grads, as_constant, params, **batch)
        updates, state = scheduled.update(grads, state, params, **batch)
        return updates, state, expected

    params = start()
    state = scheduled.init(params)
    for k in range(3):
        updates, state, expected = both(
            params, state, rates(jnp.int32(k)), dampings(jnp.int32(k))
        )
        equal(updates, expected, tolerance("solve"))
        params = optax.apply_updates(params, updates)


@pytest.mark.parametrize("draws", [1, 3])
def test_sampled_labels_differ_by_step_and_by_seed_and_are_reproducible(draws):
    sampled = ng.curvature.Dense(MODEL, ng.curvature.Sampled(draws))
    params, grads = start(), gradient_of(start())
    update = jitted_update(ng.scale_by_curvature(sampled), inputs=X)

    def history(seed):
        state, seen = ng.scale_by_curvature(sampled, seed=seed).init(params), []
        for _ in range(3):
            _, state = update(grads, state, params)
            seen.append((np.asarray(state.key), np.asarray(state.statistics)))
        return seen

    first, again, other = history(0), history(0), history(1)
    for (key, drawn), (same_key, same) in zip(first, again, strict=True):
        np.testing.assert_array_equal(key, same_key)
        np.testing.assert_array_equal(drawn, same)
    distinct = [drawn for _, drawn in (*first, *other)]
    for i in range(len(distinct)):
        for j in range(i):
            assert not np.allclose(distinct[i], distinct[j])


# Wrappers ---------------------------------------------------------------------------


def test_it_is_an_extra_args_transformation():
    for alias in ALIASES.values():
        tx = alias(RATE, MODEL)
        assert isinstance(tx, optax.GradientTransformationExtraArgs)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow)
        for name in ng.CURVATURES
        if name != "ekfac"  # the eigenbasis of a part is not part of the eigenbasis
    ],
)
def test_masked_solves_with_the_principal_submatrix(name, tolerance):
    params, grads = start(), gradient_of(start())
    inner = ng.scale_by_curvature(curvature_of(name), damping=LAMBDA)
    of_part = ng.CURVATURES[name](MODEL.fixing(params))
    masked = ng.scale_by_curvature(of_part, damping=LAMBDA)
    tx = optax.masked(masked, {"w": True, "b": False})

    @jit
    def both(state, whole_state):
        batch = {"inputs": X, "targets": Y}
        part = tx.update(grads, state, params, model_params=params, **batch)
        return part, inner.update(grads, whole_state, params, **batch)[1]

    (updates, state), whole = both(tx.init(params), inner.init(params))
    matrix = expected_matrix(name, params, whole)[WEIGHT, WEIGHT]
    expected = damped_solve(matrix, oracle(params).gradient[WEIGHT])
    np.testing.assert_allclose(updates["w"].ravel(), expected, tolerance("solve"))
    np.testing.assert_array_equal(updates["b"], grads["b"])
    assert describe(state) == describe(tx.init(params))


@pytest.mark.parametrize("name", ["kfac", "ekfac"])
def test_a_masked_layer_curvature_says_that_it_needs_the_whole_tree_at_init(name):
    inner = ng.scale_by_curvature(curvature_of(name), damping=LAMBDA)
    with pytest.raises(ValueError, match=r"build it from model.fixing\(params\)"):
        optax.masked(inner, {"w": True, "b": False}).init(start())


def test_multi_transform_leaves_the_other_part_to_sgd(tolerance):
    tx = optax.multi_transform(
        {
            "natural": ng.natural_gradient(RATE, MODEL, damping=LAMBDA),
            "plain": optax.sgd(0.2),
        },
        {"w": "natural", "b": "plain"},
    )
    params, known = start(), oracle(start())
    updates, _ = jitted_update(tx, inputs=X)(
        gradient_of(params), tx.init(params), params, model_params=params
    )
    step = damped_solve(known.fisher[WEIGHT, WEIGHT], known.gradient[WEIGHT])
    rtol = tolerance("solve")
    np.testing.assert_allclose(updates["w"].ravel(), -RATE * step, rtol)
    np.testing.assert_allclose(updates["b"], -0.2 * known.gradient[BIAS], rtol)


def test_a_natural_gradient_for_each_leaf_is_the_block_diagonal_one(tolerance):
    alone = ng.natural_gradient(RATE, MODEL, damping=LAMBDA)
    tx = optax.multi_transform({"w": alone, "b": alone}, {"w": "w", "b": "b"})
    params, known = start(), oracle(start())
    updates, _ = jitted_update(tx, inputs=X)(
        gradient_of(params), tx.init(params), params, model_params=params
    )
    step = -RATE * damped_solve(blocks(known.fisher), known.gradient)
    np.testing.assert_allclose(flat(updates), step, tolerance("solve"))


@EVERY_ALIAS
def test_injected_hyperparameters_are_those_of_a_direct_construction(alias, tolerance):
    tx = optax.inject_hyperparams(ALIASES[alias])(RATE, MODEL, damping=LAMBDA)
    params = start()
    state = tx.init(params)
    before, traces = describe(state), 0

    @jit
    def both(state):
        nonlocal traces
        traces += 1
        grads, batch = gradient_of(params), {"inputs": X, "targets": Y}
        direct = ALIASES[alias](0.05, MODEL, damping=0.7)
        expected, _ = direct.update(grads, direct.init(params), params, **batch)
        return tx.update(grads, state, params, **batch), expected

    (first, _), _ = both(state)
    state.hyperparams["learning_rate"] = jnp.array(0.05, float)
    state.hyperparams["damping"] = jnp.array(0.7, float)
    (updates, state), expected = both(state)
    equal(updates, expected, tolerance("solve"))
    assert not np.allclose(flat(first), flat(updates))
    if alias in STANDS_FOR:
        matrix = EXPECTED[STANDS_FOR[alias]](oracle(params))
        step = -0.05 * damped_solve(matrix, oracle(params).gradient, 0.7)
        np.testing.assert_allclose(flat(updates), step, tolerance("solve"))
    assert describe(state) == before
    assert traces == 1


def test_an_injected_decay_and_seed_are_those_of_a_direct_construction(tolerance):
    sampled = curvature_of("sampled")
    injected = optax.inject_hyperparams(ng.scale_by_curvature)(
        sampled, damping=LAMBDA, decay=0.8, seed=5
    )
    direct = ng.scale_by_curvature(sampled, damping=LAMBDA, decay=0.8, seed=5)
    params = start()
    states, updates = [], []
    for tx in (injected, direct):
        state, update = tx.init(params), jitted_update(tx)
        for k in range(2):
            step, state = update(gradient_of(params), state, params, inputs=draw(k)[0])
        states.append(find(state))
        updates.append(step)
    equal(*updates, tolerance("solve"))
    equal(*states, tolerance("solve"))


def test_an_instantaneous_curvature_can_have_its_damping_injected(tolerance):
    matrix_free = curvature_of("matrix_free")
    tx = optax.inject_hyperparams(ng.scale_by_curvature, static_args="decay")(
        matrix_free, damping=LAMBDA
    )
    params, known = start(), oracle(start())
    state = tx.init(params)
    step, _ = jitted_update(tx, inputs=X)(gradient_of(params), state, params)
    expected = damped_solve(known.fisher, known.gradient)
    np.testing.assert_allclose(flat(step), expected, tolerance("solve"))


def micro_batches(count=3):
    return [draw(seed) for seed in range(count)]


def test_multi_steps_averages_gradients_and_steps_on_the_last_micro_batch(tolerance):
    natural = ng.natural_gradient(RATE, MODEL, damping=LAMBDA)
    tx = optax.MultiSteps(natural, every_k_schedule=3)
    params = start()
    state, update = tx.init(params), jitted_update(tx)
    before = describe(state)
    for k, (x, y) in enumerate(micro_batches()):
        updates, state = update(gradient_of(params, x, y), state, params, inputs=x)
        assert describe(state) == before
        assert find(state).count == (k == 2)
        if k < 2:
            assert not np.any(flat(updates))
    known = [oracle(params, *batch) for batch in micro_batches()]
    gradient = np.mean([batch.gradient for batch in known], axis=0)
    step = -RATE * damped_solve(known[-1].fisher, gradient)
    np.testing.assert_allclose(flat(updates), step, tolerance("identity", "float32"))


def test_multi_steps_with_mean_statistics_is_the_step_of_the_whole_batch(tolerance):
    curvature = curvature_of("dense")
    tx = optax.MultiSteps(
        ng.scale_by_curvature(curvature, damping=LAMBDA), every_k_schedule=3
    )
    params = start()

    @jit
    def whole(state):
        total = curvature.init(params)
        for k, (x, y) in enumerate(micro_batches()):
            _, grads, statistics = curvature.value_and_grad(params, x, y)
            total = total + statistics
            mean = total / (k + 1)
            updates, state = tx.update(grads, state, params, statistics=mean)
        return updates

    x, y = (np.concatenate(part) for part in zip(*micro_batches(), strict=True))
    known = oracle(params, x, y)
    np.testing.assert_allclose(
        flat(whole(tx.init(params))),
        damped_solve(known.fisher, known.gradient),
        tolerance("identity", "float32"),  # MultiSteps accumulates in float32
    )


def test_apply_if_finite_rejects_a_bad_step_without_a_trace(tolerance):
    natural = ng.natural_gradient(RATE, MODEL, damping=LAMBDA, decay=0.5)
    tx = optax.apply_if_finite(natural, max_consecutive_errors=3)
    params, grads = start(), gradient_of(start())
    update = jitted_update(tx, inputs=X)
    _, good = update(grads, tx.init(params), params)
    bad = jax.tree.map(lambda g: g * jnp.nan, grads)
    updates, after = update(bad, good, params)
    assert not np.any(flat(updates))
    assert after.total_notfinite == 1
    equal(after.inner_state, good.inner_state, 0)
    equal(update(grads, after, params)[0], update(grads, good, params)[0], 0)


def test_a_chain_with_clipping_decay_and_momentum_is_their_composition(tolerance):
    tx = optax.chain(
        optax.clip(0.05),
        optax.add_decayed_weights(0.1),
        ng.scale_by_curvature(curvature_of("dense"), damping=LAMBDA),
        optax.trace(0.9),
        optax.scale_by_learning_rate(RATE),
    )
    params, momentum = start(), 0.0
    state, update = tx.init(params), jitted_update(tx, inputs=X)
    for _ in range(3):
        known = oracle(params)
        gradient = np.clip(known.gradient, -0.05, 0.05) + 0.1 * flat(params)
        momentum = 0.9 * momentum + damped_solve(known.fisher, gradient)
        updates, state = update(gradient_of(params), state, params)
        np.testing.assert_allclose(flat(updates), -RATE * momentum, tolerance("solve"))
        params = optax.apply_updates(params, updates)


def test_a_line_search_in_the_same_chain_gets_its_own_arguments(tolerance):
    tx = optax.chain(
        ng.scale_by_curvature(curvature_of("dense"), damping=1e-3),
        optax.scale(-8.0),  # far too long: the search must shorten it
        optax.scale_by_backtracking_linesearch(max_backtracking_steps=30),
    )
    loss_of = lambda params, inputs: MODEL.loss(params, inputs, Y)
    params = start()
    value, grads = jax.value_and_grad(loss_of)(params, X)
    more = {"value": value, "grad": grads, "value_fn": loss_of}
    update = functools.partial(tx.update, inputs=X, **more)
    updates, _ = jit(update)(grads, tx.init(params), params)
    known = oracle(params)
    direction = damped_solve(known.fisher, known.gradient, 1e-3)
    ratio = flat(updates) / -direction
    np.testing.assert_allclose(ratio, ratio[0], tolerance("identity", "float32"))
    assert 0 < ratio[0] < 8
    assert loss_of(optax.apply_updates(params, updates), X) < value


# Buffers, precision, checkpoints ------------------------------------------------------


def test_donated_states_give_the_same_steps(tolerance):
    curvature = curvature_of("dense")
    tx = ng.scale_by_curvature(curvature, damping=LAMBDA, decay=0.5)

    def step(params, state):
        grads = gradient_of(params)
        updates, state = tx.update(grads, state, params, inputs=X)
        state = ng.observe(curvature, state, params, inputs=X)
        return jax.tree.map(jnp.subtract, params, updates), state

    results = []
    for donated in ((), (0, 1)):
        program = jit(step, donate_argnums=donated)
        params, state = start(), tx.init(start())
        for _ in range(3):
            old = params, state
            params, state = program(params, state)
            reused = old[0], old[1].statistics, old[1].count
            for leaf in jax.tree.leaves(reused):
                assert leaf.is_deleted() == bool(donated)
        results.append((params, state))
    equal(*results, 0)


def dtypes(tree):
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if floating(leaf)}


@EVERY
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_low_precision_parameters_keep_float32_statistics_under_x64(name, dtype):
    tx = transformation(name)

    def step(params, x, y):
        state = tx.init(params)
        grads = gradient_of(params, x, y)
        return state, *tx.update(grads, state, params, inputs=x, targets=y)

    x = jax.ShapeDtypeStruct(X.shape, dtype)
    before, updates, after = jax.eval_shape(
        step, jax.eval_shape(lambda: start(dtype)), x, Y
    )
    assert dtypes(updates) == {dtype}
    assert dtypes(before) == dtypes(after) == {"float32"}
    assert describe(before) == describe(after)


def test_a_bfloat16_step_is_the_float32_step_rounded():
    tx = ng.scale_by_curvature(curvature_of("dense"), damping=LAMBDA)
    params = start(jnp.bfloat16)
    grads = jax.tree.map(lambda leaf: leaf / 8, params)
    updates, state = jitted_update(tx)(grads, tx.init(params), params, inputs=X)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    rounding = float(jnp.finfo(jnp.bfloat16).eps)
    fisher = oracle(exact).fisher
    np.testing.assert_allclose(state.statistics, fisher, atol=2 * rounding)
    expected = damped_solve(np.asarray(state.statistics, np.float64), flat(exact) / 8)
    np.testing.assert_allclose(flat(updates).astype(float), expected, rounding)


def through_pickle(state, _):
    return pickle.loads(pickle.dumps(state))


def through_orbax(state, folder):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder / "state", state)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(folder / "state", jax.eval_shape(lambda: state))


@pytest.mark.parametrize("name", ["sampled", "matrix_free"])
@pytest.mark.parametrize("trip", [through_pickle, through_orbax])
def test_training_continues_identically_from_a_checkpoint(name, trip, tmp_path):
    params, state = start(), transformation(name).init(start())
    step = programs(name).step
    for _ in range(2):
        params, state = step(params, state, LAMBDA, RATE)
    restored_params, restored = trip((params, state), tmp_path)
    assert describe(restored) == describe(state)
    for _ in range(2):
        params, state = step(params, state, LAMBDA, RATE)
        restored_params, restored = step(restored_params, restored, LAMBDA, RATE)
    equal((params, state), (restored_params, restored), 0)


# The loop of a user -----------------------------------------------------------------


class Net(linen.Module):
    """A network with a hidden layer, in float32 as flax's default."""

    @linen.compact
    def __call__(self, x):
        return linen.Dense(CLASSES)(jnp.tanh(linen.Dense(4)(x)))


x32 = jnp.asarray(X, jnp.float32)


@EVERY_ALIAS
def test_the_loop_of_the_readme_trains(alias):
    net, x, y = Net(), x32, jnp.asarray(Y)
    params = net.init(jax.random.key(0), x)
    more = {"targets": y} if alias in TARGETS_TOO else {}
    traces = 0

    model = ng.Model(net.apply, ng.families.Categorical(), example_inputs=x[:1])
    tx = ALIASES[alias](0.1, model, damping=1e-1)
    state = tx.init(params)
    before = describe((params, state))

    @jit
    def step(params, state, x, y):
        nonlocal traces
        traces += 1
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(grads, state, params, inputs=x, **more)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(5):
        params, state, loss = step(params, state, x, y)
        losses.append(float(loss))
        assert describe((params, state)) == before
    assert traces == 1
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < losses[0] - 1e-2


def trained_plainly(model, params, steps=3):
    """The reference: the documented loop on a tree of arrays."""
    tx = ng.natural_gradient(RATE, model, damping=LAMBDA)
    state = tx.init(params)

    @jit
    def step(params, state):
        grads = jax.grad(model.loss)(params, x32, Y)
        updates, state = tx.update(grads, state, params, inputs=x32)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = step(params, state)
    return params


def test_a_flax_train_state_trains_through_observe(tolerance):
    net = Net()
    params = net.init(jax.random.key(0), x32)
    model = ng.Model(net.apply, ng.families.Categorical())
    curvature = ng.curvature.Dense(model)
    train = TrainState.create(
        apply_fn=net.apply,
        params=params,
        tx=ng.natural_gradient(RATE, model, damping=LAMBDA),
    )

    traces = 0

    @jit
    def step(train, x, y):
        nonlocal traces
        traces += 1
        grads = jax.grad(model.loss)(train.params, x, y)
        seen = ng.observe(curvature, train.opt_state, train.params, inputs=x)
        return train.replace(opt_state=seen).apply_gradients(grads=grads)

    for _ in range(3):
        train = step(train, x32, Y)
    assert traces == 1
    assert train.step == 3
    equal(
        train.params, trained_plainly(model, params), tolerance("identity", "float32")
    )


def test_an_nnx_optimizer_trains(tolerance):
    class NNXNet(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(FEATURES, 4, rngs=rngs)
            self.out = nnx.Linear(4, CLASSES, rngs=rngs)

        def __call__(self, x):
            return self.out(jnp.tanh(self.hidden(x)))

    net = NNXNet(nnx.Rngs(0))
    graph, params = nnx.split(net, nnx.Param)
    params = jax.tree.map(jnp.copy, params)
    model = ng.Model(
        lambda params, x: nnx.merge(graph, params)(x), ng.families.Categorical()
    )
    tx = ng.natural_gradient(RATE, model, damping=LAMBDA)
    optimizer = nnx.Optimizer(net, tx, wrt=nnx.Param)
    traces = 0

    @nnx.jit
    def step(net, optimizer, x, y):
        nonlocal traces
        traces += 1
        loss = lambda net: model.loss(nnx.state(net, nnx.Param), x, y)
        optimizer.update(net, nnx.grad(loss)(net), inputs=x)

    for _ in range(3):
        step(net, optimizer, x32, Y)
    assert traces == 1
    assert optimizer.step[...] == 3
    trained, expected = nnx.state(net, nnx.Param), trained_plainly(model, params)
    equal(
        nnx.to_pure_dict(trained),
        nnx.to_pure_dict(expected),
        tolerance("identity", "float32"),
    )


def test_an_equinox_module_trains(tolerance):
    net = eqx.nn.MLP(
        FEATURES, CLASSES, 4, 1, activation=jnp.tanh, key=jax.random.key(0)
    )
    params, static = eqx.partition(net, eqx.is_inexact_array)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    apply = lambda params, x: jax.vmap(eqx.combine(params, static))(x)
    model = ng.Model(apply, ng.families.Categorical())
    trained = trained_plainly(model, params)
    arrays = lambda params: [
        {"w": layer.weight, "b": layer.bias} for layer in params.layers
    ]
    by_hand = lambda layers, x: (
        jnp.tanh(x @ layers[0]["w"].T + layers[0]["b"][None]) @ layers[1]["w"].T
        + layers[1]["b"][None]
    )
    expected = trained_plainly(
        ng.Model(by_hand, ng.families.Categorical()), arrays(params)
    )
    assert isinstance(trained, eqx.nn.MLP)
    equal(arrays(trained), expected, tolerance("identity", "float32"))

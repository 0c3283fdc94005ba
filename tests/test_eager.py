"""Updates outside of `jax.jit` are compiled once, and change nothing else."""

from __future__ import annotations

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import LAMBDA, MODEL, X, equal, gradient_of, start
from optax_rows import ALIASED, ROWS, of_batch

import natgrad as ng
from natgrad.eager import note_impossible, note_read, operation_by_operation
from natgrad.layers.compiled import compiled
from natgrad.optimizers.chains import chain

DIAGONAL = ng.curvature.Diagonal(MODEL)
OPTIMIZERS = (*ALIASED, "kfac_adaptive", "soap", "kl_shampoo")
OPTIMIZERS += ("scale_by_curvature", "scale_by_spring")


# Laws of every optimizer ------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_only_the_first_update_compiles(name, compilations):
    row, params = ROWS[name], start()
    tx, grads, extra = row.tx(), gradient_of(params), of_batch(params, row.needs)
    state = tx.init(params)
    update = lambda: tx.update(grads, state, params, **extra)
    assert compilations(update) > 0
    _, state = update()
    assert compilations(lambda: tx.init(params)) == 0
    assert compilations(update) == 0


# What a program could miss ----------------------------------------------------------


def diagonal(apply, rate=0.1, **options):
    model = ng.Model(apply, ng.families.NormalMean(1.0), **options)
    curvature = ng.curvature.Diagonal(model)
    return optax.chain(
        ng.scale_by_curvature(curvature, damping=LAMBDA), optax.scale(-1.0)
    )


def test_values_that_the_model_reads_from_python_are_followed(compilations):
    scale = {"value": 1.0}
    apply = lambda params, x: scale["value"] * (x @ params)
    params, x = jnp.ones(2), jnp.asarray(X)
    tx = diagonal(apply)
    state = tx.init(params)
    update = lambda: tx.update(params, state, params, inputs=x)[0]
    # d = −g / (s² mean x² + λ)
    expected = lambda: -1 / (scale["value"] ** 2 * (x**2).mean(0) + LAMBDA)
    for value in (1.0, 2.0, 2.0, 1.0):
        scale["value"] = value
        np.testing.assert_allclose(update(), expected(), rtol=1e-10)
    assert compilations(update) == 0


def test_batches_and_parameters_of_another_shape_are_followed(compilations):
    tx = diagonal(lambda params, x: x @ params)
    for size, count, programs in ((2, 4, 1), (3, 5, 1), (2, 4, 0)):
        params = jnp.ones(size)
        x = np.arange(count * size, dtype=float).reshape(count, size)
        update = functools.partial(tx.update, params, tx.init(params), params, inputs=x)
        assert (compilations(update) > 0) == programs
        expected = -1 / ((x**2).mean(0) + LAMBDA)
        np.testing.assert_allclose(update()[0], expected, rtol=1e-10)


@pytest.mark.parametrize("second", ["labels", "weights", "nothing observed"])
def test_impossible_values_raise_whether_compiled_or_not(second):
    mask = lambda inputs: inputs["w"]
    model = ng.Model(
        lambda params, inputs: inputs["x"] @ params,
        ng.families.Bernoulli(),
        weights=mask,
    )
    tx = ng.scale_by_curvature(
        ng.curvature.Diagonal(model, ng.curvature.Empirical()), damping=LAMBDA
    )
    params, good = jnp.ones(2), np.ones(len(X))
    batch = {"inputs": {"x": X, "w": good}, "targets": good}
    bad = {
        "labels": (batch | {"targets": 3 * good}, "targets are impossible"),
        "weights": (batch | {"inputs": {"x": X, "w": -good}}, "at least 0"),
        "nothing observed": ({}, "needs the batch"),
    }
    extra, message = bad[second]
    state = tx.init(params)
    for _ in range(2):
        with pytest.raises(ValueError, match=message):
            tx.update(params, state, params, **extra)
    tx.update(params, state, params, **batch)
    with pytest.raises(ValueError, match=message):
        tx.update(params, state, params, **extra)


def test_schedules_may_look_at_the_step_and_at_python():
    rates = {"early": 0.5, "late": 0.25}
    stepwise = lambda count: rates["early"] if count < 1 else rates["late"]
    traceable = lambda count: jnp.where(count < 1, rates["early"], rates["late"])
    params, grads = start(), gradient_of(start())
    for schedule in (stepwise, traceable):
        rates["late"] = 0.25
        tx = chain(
            ng.scale_by_curvature(DIAGONAL, damping=LAMBDA), learning_rate=schedule
        )
        state = tx.init(params)
        early, state = tx.update(grads, state, params, inputs=X)
        late, _ = tx.update(grads, state, params, inputs=X)
        equal(late, jax.tree.map(lambda u: u / 2, early), 1e-10)
        rates["late"] = 1.0
        latest, _ = tx.update(grads, state, params, inputs=X)
        equal(latest, jax.tree.map(lambda u: u * 2, early), 1e-10)


def test_hyperparameters_that_are_injected_are_followed():
    params, grads = start(), gradient_of(start())
    make = optax.inject_hyperparams(ng.scale_by_curvature, static_args=("decay",))
    tx = make(DIAGONAL, damping=LAMBDA)
    state = tx.init(params)
    once, state = tx.update(grads, state, params, inputs=X)
    state = optax.tree.set(state, damping=jnp.asarray(2 * LAMBDA))
    twice, _ = tx.update(grads, state, params, inputs=X)
    # g/d = F + λ
    added = jax.tree.map(lambda g, d, e: g / e - g / d, grads, once, twice)
    equal(added, jax.tree.map(lambda g: jnp.full_like(g, LAMBDA), grads), 1e-8)


# Programs, on a function of two lines -----------------------------------------------


def counted():
    """A compiled function of many kinds of arguments, and how often it was run."""
    runs = []

    def function(values, value_fn=abs, **extra):
        runs.append(value_fn)
        if isinstance(values, jax.core.Tracer) and note_impossible((values < 0).any()):
            return value_fn(values)
        if not isinstance(values, jax.core.Tracer) and (values < 0).any():
            raise ValueError(f"{values} is negative")
        return value_fn(values)

    return compiled(function), runs


def test_a_function_given_anew_each_time_is_right_and_warned_of_once():
    function, runs = counted()
    values = jnp.array([1.0, 2.0])
    function(values, jnp.sin)
    with pytest.warns(UserWarning, match="Pass the same function each time"):
        assert (function(values, lambda v: v + 1) == values + 1).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (function(values, lambda v: v + 2) == values + 2).all()
        np.testing.assert_allclose(function(values, jnp.sin), jnp.sin(values))
    assert len(runs) == 3  # the last one is compiled


def test_errors_name_values_as_they_do_without_a_program():
    function, _ = counted()
    for _ in range(2):
        function(np.ones(2))
        with pytest.raises(ValueError, match=r"\[-1. +1.\] is negative"):
            function(np.array([-1.0, 1.0]))


def test_what_cannot_be_traced_runs_as_it_is():
    function = compiled(lambda values: float(values.sum()) + np.asarray(values))
    for _ in range(2):
        np.testing.assert_allclose(function(jnp.ones(2)), [3.0, 3.0])


def test_a_closure_may_name_what_is_not_there_yet():
    def update(x):
        return x + 1 if x.ndim == 0 else later(x)

    run = compiled(update)
    assert run(jnp.ones(())) == run(jnp.ones(())) == 2
    later = run


@pytest.mark.parametrize(
    "context", [jax.disable_jit, jax.checking_leaks, lambda: jax.debug_nans(True)]
)
def test_the_settings_of_jax_keep_their_meaning(context):
    function, runs = counted()
    with context():
        for _ in range(2):
            assert (function(jnp.ones(2)) == 1).all()
    assert len(runs) == (2 if context is jax.disable_jit else 1)


def test_transformations_see_the_function_itself():
    function, runs = counted()
    total = lambda scale: function(scale * jnp.ones(2), jnp.sin).sum()
    np.testing.assert_allclose(jax.grad(total)(0.5), 2 * np.cos(0.5), rtol=1e-6)
    many = jax.vmap(lambda v: function(v, jnp.sin))(jnp.ones((3, 2)))
    np.testing.assert_allclose(many, np.sin(np.ones((3, 2))), rtol=1e-6)
    # What it closes over may be traced where none of its operands is.
    closing = lambda scale: compiled(lambda v: (scale * v).sum())(jnp.ones(2))
    np.testing.assert_allclose(jax.grad(closing)(0.5), 2.0)
    with operation_by_operation():
        function(jnp.ones(2))
        function(jnp.ones(2))
    assert len(runs) == 4


def test_only_functions_that_compute_something_else_are_compiled_again():
    added, runs = [1.0], []

    def read(values):
        return values + added[0]

    @compiled
    def function(values):
        runs.append(added[0])
        note_read(read, values)
        return read(values)

    results = []
    for value in (1.0, 1.0, 2.0, 2.0, 2.0, 1.0):
        added[0] = value
        results.append(float(function(jnp.zeros(()))))
    assert results == [1.0, 1.0, 2.0, 2.0, 2.0, 1.0]
    assert runs == [1.0, 2.0, 2.0]  # compiled, as it is, compiled at its second call

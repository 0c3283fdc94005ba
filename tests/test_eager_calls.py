"""What runs as one program outside of `jax.jit` beside updates, and changes nothing."""

from __future__ import annotations

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import LAMBDA, MODEL, X, Y, equal, gradient_of, start

import natgrad as ng
from natgrad.eager import operation_by_operation
from natgrad.layers.apart import Fixed, taken_apart

KEY = jax.random.PRNGKey(3)
KEPT = {"value": 1.0}
WEIGHTED = ng.Model(
    lambda params, inputs: KEPT["value"] * (inputs["x"] @ params),
    ng.families.Bernoulli(),
    weights=lambda inputs: inputs["w"],
)
GOOD = {"x": X, "w": np.ones(len(X))}
BAD = GOOD | {"w": -np.ones(len(X))}


def fisher(params):
    """diag F = s² mean_n x² p(1 − p) with the present s."""
    p = 1 / (1 + np.exp(-KEPT["value"] * (X @ np.asarray(params))))
    return KEPT["value"] ** 2 * np.mean(X**2 * (p * (1 - p))[:, None], 0)


FORMS = {
    "KFAC": lambda: ng.curvature.KFAC(MODEL).value_and_grad,
    "rows": lambda: ng.curvature.KFAC(MODEL).value_grad_and_rows,
    "Dense": lambda: ng.curvature.Dense(MODEL).value_and_grad,
    "Automatic": lambda: ng.curvature.Automatic(MODEL).value_and_grad,
    "SubBatch": lambda: (
        ng.curvature.SubBatch(ng.curvature.Diagonal(MODEL), every=2).value_and_grad
    ),
}


@pytest.mark.parametrize("name", FORMS)
def test_losses_gradients_and_statistics_compile_once(name, compilations):
    params = start()
    results = []
    call = lambda: results.append(FORMS[name]()(params, X, Y)) or results[-1]
    assert compilations(call) > 0
    assert compilations(call) == 0  # of a curvature that is made anew
    jax.tree.map(np.testing.assert_array_equal, *results)
    equal(results[1], jax.jit(FORMS[name]())(params, X, Y), 1e-12)


CURVATURES = {
    "KFAC": ng.curvature.KFAC,
    "Dense": ng.curvature.Dense,
    "Gram": ng.curvature.Gram,
    "MatrixFree": ng.curvature.MatrixFree,
}
NUMBERS = {
    "solve": lambda metric, v, damping: metric.solve(v, damping),
    "sample": lambda metric, v, damping: metric.sample(KEY, damping),
    "logdet": lambda metric, v, damping: metric.logdet(damping),
    "inverse_diagonal": lambda metric, v, damping: metric.inverse_diagonal(damping),
    "effective_dimension": lambda metric, v, damping: metric.effective_dimension(
        damping
    ),
    "largest_eigenvalue": lambda metric, v, damping: metric.largest_eigenvalue(),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_metrics_and_what_is_asked_of_them_compile_once(name, compilations):
    params, gradient = start(), gradient_of(start())
    metric_of = lambda x: CURVATURES[name](MODEL).at(params, x, Y, KEY)
    metric, found = metric_of(X), {}
    jax.tree.map(np.testing.assert_array_equal, metric, metric_of(X))
    for number, ask in NUMBERS.items():
        ask(metric, gradient, LAMBDA)
        again = lambda ask=ask: ask(metric_of(2 * X), gradient, 2 * LAMBDA)
        assert compilations(again) == 0
        found[number] = again()

    @jax.jit  # inside of which functions run as they are written
    def as_written(metric):
        asked = {n: ask(metric, gradient, 2 * LAMBDA) for n, ask in NUMBERS.items()}
        return asked, metric.solve(gradient)

    other = metric_of(2 * X)
    asked, least = as_written(other)
    equal(found, asked, 1e-9)
    equal(other.solve(gradient), least, 1e-7)


def test_metrics_follow_what_the_model_reads_from_python():
    """A product of `MatrixFree` calls the model, whose scale is 1 and then 2."""
    metric = ng.curvature.MatrixFree(WEIGHTED).at(jnp.array([0.3, -0.5]), GOOD)
    v = jnp.array([1.0, 2.0])
    for value in (1.0, 2.0, 2.0, 1.0):
        KEPT["value"] = value
        solved = metric.solve(v, LAMBDA)
        with operation_by_operation():
            np.testing.assert_allclose(solved, metric.solve(v, LAMBDA), rtol=1e-9)


def test_statistics_that_a_curvature_continues_from_are_operands(compilations):
    ekfac, params = ng.curvature.EKFAC(MODEL), start()
    _, _, first = ekfac.value_and_grad(params, X, Y)

    def following(previous):
        return ekfac.with_previous(previous).value_and_grad(params, X, Y)

    second = following(first)[2]
    assert compilations(lambda: following(second)) == 0
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-15)
    jax.tree.map(close, following(second), jax.jit(following)(second))


def test_values_follow_python_and_impossible_ones_raise(compilations):
    curvature, params = ng.curvature.Diagonal(WEIGHTED), jnp.array([0.3, -0.5])
    tx = ng.scale_by_curvature(curvature, damping=LAMBDA)
    state = tx.init(params)
    calls = {
        "observe": lambda x: ng.observe(tx, state, params, inputs=x).statistics,
        "value_and_grad": lambda x: curvature.value_and_grad(params, x, GOOD["w"])[2],
    }
    for call in calls.values():
        for value in (1.0, 2.0, 2.0, 1.0):
            KEPT["value"] = value
            (found,) = jax.tree.leaves(call(GOOD))
            np.testing.assert_allclose(found, fisher(params), rtol=1e-6)
            with pytest.raises(ValueError, match="at least 0"):
                call(BAD)
        assert compilations(lambda call=call: call(GOOD)) == 0


def test_observations_compile_once_and_leave_the_rest_of_a_state_alone(compilations):
    params = start()
    tx = ng.kfac(0.1, MODEL)
    state = {"step": 3, "name": "run", "optimizer": tx.init(params)}
    observe = lambda: ng.observe(tx, state, params, inputs=X)
    assert compilations(observe) > 0
    assert compilations(observe) == 0
    found = observe()
    assert found["step"] is state["step"]
    assert found["name"] == "run"
    jitted = jax.jit(lambda state: ng.observe(tx, state, params, inputs=X))
    equal(found["optimizer"], jitted(state["optimizer"]), 1e-12)
    for _ in range(2):
        with pytest.raises(ValueError, match="No part of the optimizer state"):
            ng.observe(tx, {"step": 3}, params, inputs=X)


@pytest.mark.parametrize("example", [X[:1], None])
def test_updates_of_what_was_observed_compile_once(compilations, example):
    model = ng.Model(MODEL.apply, MODEL.family, example_inputs=example)
    form = ng.natural_gradient if example is None else ng.kfac
    tx, params, grads = form(0.1, model), start(), gradient_of(start())
    state = ng.observe(tx, tx.init(params), params, inputs=X)
    update = lambda: tx.update(grads, state, params)
    assert compilations(update) > 0
    assert compilations(update) == 0
    with operation_by_operation():
        plain = update()
    equal(update(), plain, 1e-12)


def test_injected_hyperparameters_are_operands_of_one_program(compilations):
    params, grads = start(), gradient_of(start())
    make = optax.inject_hyperparams(ng.diagonal_fisher, static_args=("model",))
    tx = make(learning_rate=0.1, model=MODEL, damping=LAMBDA)
    state = tx.init(params)
    update = lambda state: tx.update(grads, state, params, inputs=X)
    once, _ = update(state)
    state = optax.tree.set(state, learning_rate=jnp.asarray(0.2, jnp.float64))
    assert compilations(lambda: update(state)) == 0
    equal(update(state)[0], jax.tree.map(lambda u: 2 * u, once), 1e-10)


def test_models_are_copied_and_pickled_without_their_programs():
    model = ng.Model(lambda params, x: x @ params, ng.families.NormalMean(1.0))
    curvature, y = ng.curvature.Diagonal(model), np.zeros(len(X))
    results = [curvature.value_and_grad(jnp.ones(2), X, y)]
    for other in (copy.deepcopy(curvature), copy.copy(curvature)):
        results.append(other.value_and_grad(jnp.ones(2), X, y))
        jax.tree.map(np.testing.assert_array_equal, *results[-2:])
    assert "_programs" in vars(model)
    assert pickle.loads(pickle.dumps(vars(model)["_programs"])) == {}


def test_what_is_taken_apart_comes_together_again():
    damping, schedule = jnp.array(0.5), lambda count: 0.1
    tx = ng.scale_by_curvature(ng.curvature.Diagonal(MODEL), damping=damping)
    leaves, structure = jax.tree.flatten(taken_apart(tx.update))
    again = structure.unflatten([damping if v is damping else v for v in leaves])
    assert any(v is damping for v in leaves)
    params, grads = start(), gradient_of(start())
    state = tx.init(params)
    found = jax.jit(lambda: again(grads, state, params, inputs=X))()
    equal(found, jax.jit(lambda: tx.update(grads, state, params, inputs=X))(), 1e-12)
    assert taken_apart(schedule) is schedule  # of a user
    assert taken_apart(MODEL) is MODEL


def test_numbers_are_fixed_by_value_and_type_and_objects_by_identity():
    objects = [object(), object()]
    values = [1, 1.0, True, 0.0, -0.0, "1", *objects, [1], [1]]
    for i, first in enumerate(map(Fixed, values)):
        for j, second in enumerate(map(Fixed, values)):
            assert (first == second) == (i == j)
    assert Fixed(0.1) == Fixed(0.1)
    assert hash(Fixed(0.1)) == hash(Fixed(0.1))

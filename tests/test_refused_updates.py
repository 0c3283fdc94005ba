"""What an update cannot do is refused: what was given, what is expected, the cure."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_input import DENSE, GRADS, MODEL, PARAMS, TX, X, Y, refused, refuses, updated

import natgrad as ng


def test_an_update_without_inputs_says_what_to_pass():
    with refuses("update needs the batch", "inputs=x", "targets=y", "natgrad.observe"):
        updated()


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(tx, 2)])
def test_under_jit_an_update_without_inputs_raises_when_the_program_runs(wrap):
    tx = wrap(TX)
    compiled = jax.jit(tx.update).lower(GRADS, tx.init(PARAMS), PARAMS).compile()
    with refuses("inputs=x", "natgrad.observe", error=jax.errors.JaxRuntimeError):
        jax.block_until_ready(compiled(GRADS, tx.init(PARAMS), PARAMS))
        jax.effects_barrier()


def test_under_vmap_one_unobserved_member_is_enough_to_raise():
    observed = ng.observe(DENSE, TX.init(PARAMS), PARAMS, inputs=X)
    members = [observed, TX.init(PARAMS)]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    program = jax.jit(jax.vmap(TX.update, (None, 0, None)))
    with refuses("inputs=x", "natgrad.observe", error=jax.errors.JaxRuntimeError):
        jax.block_until_ready(program(GRADS, states, PARAMS))
        jax.effects_barrier()


def test_a_curvature_without_statistics_asks_for_inputs_even_under_jit():
    curvature = ng.curvature.MatrixFree(MODEL)
    tx = ng.scale_by_curvature(curvature)
    state = tx.init(PARAMS)
    update = lambda: tx.update(GRADS, state, PARAMS)
    refused(update, "MatrixFree", "current batch", "inputs=x")
    observe = lambda: ng.observe(curvature, state, PARAMS, inputs=X)
    refused(observe, "MatrixFree", "nothing to observe", "inputs=")


def test_an_update_without_params_says_to_pass_them():
    refused(lambda: updated(params=None, inputs=X), "update(gradient, state, params")


@pytest.mark.parametrize(
    "grads", [{"w": GRADS["w"]}, {"w": GRADS["w"].T, "b": GRADS["b"]}, GRADS["w"]]
)
def test_a_gradient_of_another_structure_is_refused(grads):
    refused(
        lambda: updated(grads=grads, inputs=X),
        "The gradient must be shaped like the parameters",
        "Expected {'b': (3,), 'w': (2, 3)}",
        "got",
    )


def test_integer_parameters_are_refused_by_their_name():
    params = {"w": jnp.ones((2, 3)), "steps": {"n": jnp.arange(3)}}
    words = "['steps']['n']", "int64", "Cast it", "in_axes"
    refused(lambda: TX.init(params), *words)
    refused(lambda: TX.update(params, None, params, inputs=X), *words)
    refused(lambda: DENSE.init({}), "no array leaves")
    complex_params = {"w": jnp.ones((2, 3), complex)}
    refused(lambda: DENSE.init(complex_params), "['w']", "complex", "split_complex")


def test_a_state_of_no_parameters_is_refused_where_there_are_some():
    state = TX.init({})
    refused(lambda: TX.update(GRADS, state, PARAMS, inputs=X), "init(params)")


@pytest.mark.parametrize("optimizer", [ng.natural_gradient, ng.spring])
def test_a_curvature_in_place_of_a_function_of_the_model_is_refused(optimizer):
    with refuses("model -> curvature", "type Dense", "static_args"):
        optimizer(0.1, MODEL, curvature=DENSE)
    injected = optax.inject_hyperparams(optimizer)
    with refuses("Dense is the curvature of", "static_args"):
        injected(0.1, MODEL, curvature=ng.curvature.Dense).init(PARAMS)
    static = optax.inject_hyperparams(optimizer, "curvature")
    static(0.1, MODEL, curvature=ng.curvature.Dense).init(PARAMS)


def test_statistics_of_another_curvature_are_refused():
    statistics = ng.curvature.Diagonal(MODEL).estimate(PARAMS, X)
    refused(
        lambda: updated(statistics=statistics), "Dense", "float64[9, 9]", "float64[9]"
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with refuses("decay must lie in [0, 1)", str(decay)):
        ng.scale_by_curvature(DENSE, decay=decay)
    with refuses("decay must lie in [0, 1)", str(decay)):
        ng.natural_gradient(0.1, MODEL, decay=decay)


def test_the_curvature_of_one_batch_cannot_be_averaged():
    with refuses("MatrixFree", "cannot be averaged", "decay at 0", "0.9"):
        ng.scale_by_curvature(ng.curvature.MatrixFree(MODEL), decay=0.9)


@pytest.mark.parametrize("damping", [-1e-3, float("nan"), float("inf")])
def test_an_impossible_constant_damping_is_refused(damping):
    for make in (
        lambda: ng.scale_by_curvature(DENSE, damping=damping),
        lambda: ng.natural_gradient(0.1, MODEL, damping=damping),
        lambda: ng.matrix_free(0.1, MODEL, damping=np.float32(damping)),
        lambda: ng.diagonal_fisher(0.1, MODEL, damping=jnp.asarray(damping)),
    ):
        with refuses("damping must be finite and at least 0", f"{damping}"):
            make()


def test_a_damping_that_is_not_a_scalar_is_refused():
    with refuses("damping must be a scalar or a schedule", "(3,)"):
        ng.scale_by_curvature(DENSE, damping=jnp.ones(3))


# Without a schedule.
NUMBERS = {
    "decay": lambda value: ng.diagonal_fisher(0.1, MODEL, decay=value),
    "momentum": lambda value: ng.march(0.1, MODEL, momentum=value),
    "constraint": lambda value: ng.scale_by_norm_constraint(0.1, value),
}


@pytest.mark.parametrize("value", ["1e-3", None, True, 1j, MODEL])
def test_what_is_no_number_is_refused_where_a_number_is_expected(value):
    for name, make in {
        "damping": lambda value: ng.scale_by_curvature(DENSE, damping=value),
        "learning_rate": lambda value: ng.natural_gradient(value, MODEL),
        "radius": lambda value: ng.scale_by_kl_trust_region(MODEL, value),
    }.items():
        with refuses(f"{name} must be a scalar or a schedule", repr(value)):
            make(value)
    for name, make in NUMBERS.items():
        with refuses(f"{name} must be a scalar, got", repr(value)):
            make(value)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_schedule_is_refused_where_there_is_none(name):
    with refuses(f"{name} must be a scalar, got", "function"):
        NUMBERS[name](lambda count: 0.5)


@pytest.mark.parametrize("rate", [float("nan"), np.float32("inf"), jnp.array(jnp.nan)])
def test_a_learning_rate_that_is_not_finite_is_refused(rate):
    for make in (ng.natural_gradient, ng.kfac, ng.spring, ng.matrix_free, ng.gram):
        with refuses("learning_rate must be finite", f"got {rate}"):
            make(rate, MODEL)


def test_model_and_learning_rate_swapped_get_a_sentence():
    for make in (ng.natural_gradient, ng.kfac, ng.spring, ng.gram, ng.diagonal_fisher):
        with refuses("got 0.1", "learning rate first and the model second"):
            make(MODEL, 0.1)
    with refuses("KFAC is the curvature of a natgrad.Model", "got 0.1"):
        ng.kfac_adaptive(0.1)


@pytest.mark.parametrize(
    "make",
    [ng.natural_gradient, ng.kfac, ng.spring, ng.matrix_free],
    ids=lambda make: make.__name__,
)
def test_a_state_for_parameters_of_other_shapes_is_refused(make):
    tx = make(0.1, MODEL)
    fewer = {"w": PARAMS["w"][:, :2], "b": PARAMS["b"][:2]}
    state = tx.init(PARAMS)
    words = "made for parameters of other shapes", "Call init(params) again"
    refused(lambda: tx.update(fewer, state, fewer, inputs=X), *words)
    if make is ng.kfac:  # after an observation
        refused(lambda: tx.update(fewer, state, fewer), *words)


def test_so_is_one_of_the_adaptive_optimizer():
    tx = ng.kfac_adaptive(MODEL)
    fewer = {"w": PARAMS["w"][:, :2], "b": PARAMS["b"][:2]}
    batch = {"inputs": X, "value": 1.0, "value_fn": MODEL.loss, "targets": Y}
    state = tx.init(PARAMS)
    with refuses("made for parameters of other shapes", "Call init(params) again"):
        tx.update(fewer, state, fewer, **batch)


@pytest.mark.parametrize("name", ["kfac", "spring", "kfac_adaptive"])
@pytest.mark.parametrize("other", [optax.sgd(0.1, momentum=0.9).init(PARAMS)[0], {}])
def test_a_state_of_another_kind_is_refused(name, other):
    tx = getattr(ng, name)(model=MODEL)
    batch = {"inputs": X, "value": 1.0, "value_fn": MODEL.loss, "targets": Y}
    kind, state = type(other).__name__, tx.init(PARAMS)
    state = other if name == "kfac_adaptive" else (other, *state[1:])
    with refuses(f"where a {kind} was given", "jax.tree.unflatten"):
        tx.update(GRADS, state, PARAMS, **batch)


@pytest.mark.parametrize(
    ("name", "hint"), [("densee", "Did you mean 'dense'?"), ("hessian-ish", "Known: ")]
)
def test_an_unknown_curvature_name_lists_the_known_ones(name, hint):
    with refuses(repr(name), hint, *ng.CURVATURES):
        ng.curvature.by_name(name)


def test_masked_without_model_params_says_to_pass_them():
    for tx in (
        optax.masked(TX, {"w": True, "b": False}),
        optax.multi_transform({"a": TX, "b": optax.sgd(1.0)}, {"w": "a", "b": "b"}),
    ):
        state = tx.init(PARAMS)
        refused(
            lambda tx=tx, state=state: tx.update(GRADS, state, PARAMS, inputs=X),
            "optax.masked",
            "update(..., model_params=params)",
        )


def test_model_params_of_another_model_are_refused():
    tx = optax.masked(TX, {"w": True, "b": False})
    state = tx.init(PARAMS)
    refused(
        lambda: tx.update(
            GRADS, state, PARAMS, inputs=X, model_params={"w": PARAMS["w"]}
        ),
        "model_params must be the model's whole parameter tree",
    )


@pytest.mark.parametrize("make", [ng.curvature.Dense, ng.curvature.KLHessian])
def test_labels_that_need_data_or_a_key_say_so(make):
    empirical = make(MODEL, ng.curvature.Empirical())
    sampled = make(MODEL, ng.curvature.Sampled(2))
    refused(lambda: empirical.at(PARAMS, X), "Empirical()", "targets=y")
    refused(lambda: sampled.at(PARAMS, X), "Sampled(n=2)", "pass key=")
    refused(lambda: sampled.at(PARAMS, X, Y), "Sampled(n=2)", "pass key=")
    tx = ng.scale_by_curvature(empirical)
    refused(lambda: updated(tx, inputs=X), "Empirical()", "targets=y")
    state = tx.init(PARAMS)
    observe = lambda: ng.observe(empirical, state, PARAMS, inputs=X)
    refused(observe, "Empirical()", "targets=y")


@pytest.mark.parametrize("n", [0, -1, 1.5, None])
def test_a_number_of_samples_that_is_no_count_is_refused(n):
    with refuses("n must be an integer >= 1", repr(n)):
        ng.curvature.Sampled(n)


def test_observing_with_another_curvature_is_refused():
    chain = optax.chain(TX, optax.scale(-1.0)).init(PARAMS)
    for curvature, state in (
        (ng.curvature.Diagonal(MODEL), chain),
        (DENSE, optax.adam(0.1).init(PARAMS)),
        (DENSE, TX.init({"w": PARAMS["w"]})),
    ):
        refused(
            lambda c=curvature, s=state: ng.observe(c, s, PARAMS, inputs=X),
            "No part of the optimizer state",
            type(curvature).__name__,
            "same transformation",
        )


def test_a_state_with_inverses_is_refused_by_a_solver_that_keeps_none():
    model = ng.Model(MODEL.apply, MODEL.family, example_inputs=X[:1])
    curvature, solver = ng.curvature.KFAC(model), ng.kronecker.FactoredTikhonov()
    keeps = ng.scale_by_curvature(
        curvature, solver=solver, refresh=ng.Refresh(inverses=2)
    )
    plain = ng.scale_by_curvature(curvature)
    state = keeps.init(PARAMS)
    refused(
        lambda: plain.update(GRADS, state, PARAMS, inputs=X),
        "The state keeps inverses",
        "solver=None",
        "make the state by init",
    )

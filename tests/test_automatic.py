"""The choice of space by size, and curvatures that derivatives do not see."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, dense_of, ravel, relative_error

import natgrad as ng
from natgrad.curvature import (
    Automatic,
    AutomaticDiagonal,
    Constant,
    Dense,
    Diagonal,
    Gram,
    LayerDiagonal,
    MatrixFree,
    OfTheBatch,
)
from natgrad.model.batch import Batch

KEY = jax.random.PRNGKey(2)


def linear(outputs, features=40):
    """A linear classifier with `features` times `outputs` parameters."""
    return ng.Model(lambda p, x: x @ p["w"], ng.families.Categorical()), {
        "w": 0.1 * jax.random.normal(KEY, (features, outputs))
    }


@pytest.mark.parametrize(
    ("examples", "features", "outputs", "expected"),
    [
        (30, 10, 3, Dense),  # P = 30: a matrix that can be averaged
        (100, 200, 3, Gram),  # P = 600 >= M = 300
        (600, 200, 3, Dense),  # P = 600 < M = 1800
        (600, 2000, 3, Gram),  # P = 6000 >= M = 1800
        (3000, 2000, 3, MatrixFree),  # M = 9000 is more than is factorised
    ],
)
def test_the_space_is_chosen_by_the_documented_rule(
    examples, features, outputs, expected
):
    model, params = linear(outputs, features)
    chosen = Automatic(model).specialize(params)
    if isinstance(chosen, OfTheBatch):
        chosen = chosen.choice(params, jnp.zeros((examples, features)))
    assert type(chosen) is expected
    assert chosen.labels == ng.curvature.Exact()


@pytest.mark.parametrize("examples", [50, 400])
def test_every_choice_gives_the_same_step(examples):
    model, params = linear(3, 200)
    x = jax.random.normal(KEY, (examples, 200))
    y = model.sample(KEY, params, x)
    gradient = jax.grad(model.loss)(params, x, y)

    @jax.jit
    def direction(params, gradient):
        steps = []
        for curvature in (Automatic, Dense, Gram):
            tx = ng.natural_gradient(
                1.0, model, damping=1e-2, decay=0.0, curvature=curvature
            )
            steps.append(tx.update(gradient, tx.init(params), params, inputs=x)[0])
        return [ravel(step) for step in steps]

    chosen, *others = direction(params, gradient)
    for other in others:
        assert relative_error(chosen, other) < 1e-9


@pytest.mark.parametrize(("examples", "exact"), [(170, True), (171, False)])
def test_gram_takes_exact_labels_up_to_512_columns(examples, exact):
    model, params = linear(3, 5)
    x = jax.random.normal(KEY, (examples, 5))
    gradient = {"w": jnp.cos(jnp.arange(15.0)).reshape(5, 3)}

    def step(labels):
        tx = ng.gram(1.0, model, damping=0.1, labels=labels, trust_region=None)
        return tx.update(gradient, tx.init(params), params, inputs=x)[0]["w"]

    chosen, sketched = jax.jit(lambda: (step(None), step(ng.curvature.Sketched(1))))()
    z = np.asarray(x) @ np.asarray(params["w"])
    p = np.exp(z) / np.sum(np.exp(z), axis=1, keepdims=True)
    law = np.einsum("ni,ij->nij", p, np.eye(3)) - p[:, :, None] * p[:, None]
    fisher = np.einsum("nab,nij->aibj", x[:, :, None] * x[:, None], law) / examples
    damped = fisher.reshape(15, 15) + 0.1 * np.eye(15)
    expected = -np.linalg.solve(damped, np.ravel(gradient["w"])).reshape(5, 3)
    assert (relative_error(chosen, expected) < 1e-9) == exact
    assert (relative_error(chosen, sketched) < 1e-9) != exact


def test_an_average_needs_a_matrix_and_says_so():
    model, params = linear(3, 200)
    tx = ng.natural_gradient(0.1, model, decay=0.9)
    with pytest.raises(ValueError, match="name a curvature that keeps a matrix"):
        tx.init(params)
    few = linear(3, 5)
    state = ng.natural_gradient(0.1, few[0], decay=0.9).init(few[1])
    assert state[0].statistics.shape == (15, 15)
    named = ng.natural_gradient(0.1, model, decay=0.9, curvature=Dense)
    assert named.init(params)[0].statistics.shape == (600, 600)


def test_a_scan_over_batches_keeps_the_state_of_a_large_model():
    model, params = linear(3, 200)
    tx = ng.natural_gradient(0.1, model, damping=1e-2)
    x = jax.random.normal(KEY, (4, 20, 200))
    y = jnp.zeros((4, 20), jnp.int32)

    def step(carry, batch):
        params, state = carry
        before, gradient = jax.value_and_grad(model.loss)(params, *batch)
        updates, state = tx.update(gradient, state, params, inputs=batch[0])
        params = optax.apply_updates(params, updates)
        return (params, state), model.loss(params, *batch) - before

    (_, state), changes = jax.lax.scan(step, (params, tx.init(params)), (x, y))
    assert (changes < 0).all()
    assert state[0].count == 4


# Constant -----------------------------------------------------------------------------


def one_step(curvature, params, x, y, damping):
    tx = ng.scale_by_curvature(curvature, damping=damping)
    gradient = jax.grad(curvature.model.loss)(params, x, y)
    return tx.update(gradient, tx.init(params), params, inputs=x)[0]


@pytest.mark.parametrize("form", [Dense, Gram])
def test_a_constant_curvature_changes_derivatives_and_nothing_else(form):
    model, params, x, y = CASES["categorical"].problem()
    plain, constant = form(model), Constant(form(model))

    @jax.jit
    def both(params, v):
        step = lambda curvature: lambda p: ravel(one_step(curvature, p, x, y, 0.1))
        hessian_v = jax.jvp(lambda p: jax.grad(model.loss)(p, x, y), (params,), (v,))
        moved = [jax.jvp(step(c), (params,), (v,)) for c in (plain, constant)]
        return ravel(hessian_v[1]), *moved

    v = jax.tree.map(jnp.cos, params)
    hessian_v, (value, moving), (same, still) = both(params, v)
    assert relative_error(same, value) < 1e-12
    # With F held fixed the step's derivative is that of the gradient, preconditioned.
    matrix = dense_of(Dense(model), params, x)
    damped = matrix + 0.1 * np.eye(len(matrix))
    assert relative_error(still, np.linalg.solve(damped, hessian_v)) < 1e-9
    assert relative_error(moving, still) > 1e-3


def test_the_derivative_in_damping_survives_a_constant_curvature():
    model, params, x, y = CASES["categorical"].problem()
    length = lambda curvature: (
        lambda damping: jnp.sum(ravel(one_step(curvature, params, x, y, damping)) ** 2)
    )
    both = [jax.grad(length(c)) for c in (Constant(Dense(model)), Dense(model))]
    given, expected = jax.jit(lambda damping: [f(damping) for f in both])(0.1)
    assert relative_error(given, expected) < 1e-9


def test_constant_hands_on_what_it_wraps():
    model, params, x, y = CASES["categorical"].problem()
    constant = Constant(Automatic(model))
    assert type(constant.specialize(params)) is Constant
    loss, gradient, statistics = jax.jit(constant.value_and_grad)(params, x, y)
    assert relative_error(loss, model.loss(params, x, y)) < 1e-12
    expected = jax.grad(model.loss)(params, x, y)
    assert relative_error(ravel(gradient), ravel(expected)) < 1e-12
    assert relative_error(statistics, dense_of(Dense(model), params, x)) < 1e-12
    assert Constant(Gram(model)).requires_batch
    assert not Constant(Dense(model)).requires_batch


def test_the_diagonal_is_read_off_layers_where_they_can_be():
    """The same numbers from both; where examples interact, one by one would refuse."""
    model, params, x, y = CASES["categorical"].problem()
    model = dataclasses.replace(model, example_inputs=x[:1])
    key, given = jax.random.PRNGKey(0), Batch(params, x)
    together = dataclasses.replace(
        model,
        apply=lambda p, x: model.apply(p, x) + jnp.mean(model.apply(p, x), 0)[None],
    )
    for each, form in ((model, LayerDiagonal), (together, Diagonal)):
        automatic = AutomaticDiagonal(each)
        assert type(automatic._choice(given)) is form
        statistics = jax.jit(automatic.estimate)(params, x, None, key)
        expected = jax.jit(Diagonal(each).estimate)(params, x, None, key)
        assert relative_error(statistics, expected) < 1e-10
        _, _, again = jax.jit(automatic.value_and_grad)(params, x, y, key)
        assert relative_error(again, expected) < 1e-10

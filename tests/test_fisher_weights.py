"""Masks, weights, padded sequences and shared inputs in the Fisher information."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    CASES,
    LABELS,
    dense_of,
    dense_of_each,
    mlp,
    mlp_params,
    ravel,
    relative_error,
)

import natgrad as ng
from natgrad import families
from natgrad.curvature import (
    Dense,
    Empirical,
    Exact,
    KLHessian,
    MatrixFree,
    Sampled,
)

KEY = jax.random.PRNGKey(5)


def masked(case, **options):
    """The case's model with weights in its inputs."""
    apply = lambda params, inputs: case.link(mlp(params, inputs["x"]))
    return ng.Model(apply, case.family, weights=lambda i: i["weights"], **options)


def padded(name):
    """(model with weights, (params, inputs, y)), (model, (params, x, y)), rows removed.

    Sampled labels depend on the example's index, so the removed rows are the last.
    """
    model, params, x, y = CASES[name].problem()
    mask = jnp.array([1, 1, 1, 1, 1, 0, 0], float)
    integers = jnp.issubdtype(y.dtype, jnp.integer)
    impossible = jnp.full_like(y[5:], -7 if integers else jnp.nan)
    batch = {"x": x, "weights": mask}, jnp.concatenate([y[:5], impossible])
    return (masked(CASES[name]), (params, *batch)), (model, (params, x[:5], y[:5]))


@pytest.mark.parametrize("name", ["categorical", "normal_mean_log_scale"])
def test_the_loss_under_a_mask_is_that_without_the_rows(name, tolerance):
    def figures(model, params, x, y):
        other = jax.tree.map(lambda leaf: leaf + 0.1, params)
        value, gradient = jax.value_and_grad(model.loss)(params, x, y)
        divergence = model.kl(params, other, x)
        return jnp.concatenate([jnp.stack([value, divergence]), ravel(gradient)])

    given, expected = (
        jax.jit(functools.partial(figures, model))(*batch)
        for model, batch in padded(name)
    )
    assert relative_error(given, expected) < tolerance("identity")


@pytest.mark.parametrize("name", ["categorical", "normal_mean_log_scale"])
@pytest.mark.parametrize("labels", LABELS)
def test_a_mask_does_what_removing_the_rows_does(name, labels, tolerance):
    forms = Dense, KLHessian, MatrixFree
    of_forms = (
        dense_of_each([form(model, LABELS[labels]) for form in forms], *batch, KEY)
        for model, batch in padded(name)
    )
    for given, expected in zip(*of_forms, strict=True):
        assert relative_error(given, expected) < tolerance("identity")


def test_an_integer_weight_does_what_repeating_the_row_does(tolerance):
    case = CASES["categorical"]
    model, params, x, y = case.problem()
    weights = jnp.array([1, 2, 3, 1, 0, 1, 2])
    inputs = {"x": x, "weights": weights}
    x2, y2 = jnp.repeat(x, weights, axis=0), jnp.repeat(y, weights, axis=0)
    given = jax.jit(masked(case).loss)(params, inputs, y)
    assert relative_error(given, jax.jit(model.loss)(params, x2, y2)) < tolerance(
        "identity"
    )
    for labels in (Exact(), Empirical()):
        given = dense_of(Dense(masked(case), labels), params, inputs, y)
        expected = dense_of(Dense(model, labels), params, x2, y2)
        assert relative_error(given, expected) < tolerance("identity")


def test_scaling_all_weights_changes_nothing(tolerance):
    case = CASES["bernoulli"]
    _, params, x, y = case.problem()
    model = masked(case)
    weights = jnp.linspace(0.2, 3, len(x))
    for labels in (Exact(), Empirical()):
        one = dense_of(Dense(model, labels), params, {"x": x, "weights": weights}, y)
        two = dense_of(
            Dense(model, labels), params, {"x": x, "weights": 9 * weights}, y
        )
        assert relative_error(one, two) < tolerance("identity")


def sequence_problem():
    """Four sequences of up to three positions with three classes, padded."""
    params = mlp_params(KEY, 3)
    x = jax.random.normal(KEY, (4, 3, 3))
    y = jax.random.randint(KEY, (4, 3), 0, 3)
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], float)
    apply = lambda params, inputs: jax.vmap(lambda x: mlp(params, x))(inputs["x"])
    model = ng.Model(apply, families.Categorical(), weights=lambda i: i["mask"])
    return model, params, {"x": x, "mask": mask}, jnp.where(mask > 0, y, -1)


def by_hand(params, inputs, y):
    """Loss, exact and empirical Fisher of the sequences, one position at a time."""
    x, mask = inputs["x"], np.asarray(inputs["mask"])
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    logits = jax.jit(lambda vector, x: mlp(unravel(vector), x[None])[0])
    derivative = jax.jit(jax.jacrev(logits))
    loss, exact, empirical, count = 0.0, 0.0, 0.0, 0
    for n in range(len(x)):
        score = 0.0
        for t in np.flatnonzero(mask[n]):
            e = np.exp(np.asarray(logits(vector, x[n, t])))
            p, jacobian = e / e.sum(), np.asarray(derivative(vector, x[n, t]))
            loss -= np.log(p[y[n, t]])
            exact += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
            score += jacobian.T @ (np.eye(3)[y[n, t]] - p)
        empirical += np.outer(score, score)
        count += bool(mask[n].any())
    return loss / count, exact / count, empirical / count


def test_padded_positions_of_sequences_count_neither_in_the_loss_nor_in_the_fisher():
    model, params, inputs, y = sequence_problem()
    loss, exact, empirical = by_hand(params, inputs, y)
    assert relative_error(jax.jit(model.loss)(params, inputs, y), loss) < 1e-12
    for form in (Dense, KLHessian, MatrixFree):
        assert relative_error(dense_of(form(model), params, inputs), exact) < 1e-10
        given = dense_of(form(model, Empirical()), params, inputs, y)
        assert relative_error(given, empirical) < 1e-10
    gradient = jax.jit(jax.grad(model.loss))(params, inputs, y)
    assert jnp.isfinite(ravel(gradient)).all()


def test_sampled_labels_of_sequences_are_unbiased():
    model, params, inputs, y = sequence_problem()
    _, exact, _ = by_hand(params, inputs, y)
    draw = lambda key: Dense(model, Sampled(1)).estimate(params, inputs, key=key)
    draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 400)))
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert jnp.abs((draws.mean(0) - exact) / error).max() < 5


def test_a_model_without_inputs_serves_any_number_of_labels(tolerance):
    model = ng.Model(lambda z, _: z[None], families.NormalMeanLogScale())
    z = jnp.array([0.3, -0.2])
    y = jax.random.normal(KEY, (9,))
    scale = jnp.exp(z[1])
    expected = jnp.diag(jnp.array([1 / scale**2, 2.0]))
    for form in (Dense, KLHessian, MatrixFree):
        assert relative_error(dense_of(form(model), z, None), expected) < 1e-10
    residual = (y - z[0]) / scale
    scores = jnp.stack([residual / scale, residual**2 - 1], -1)
    empirical = dense_of(Dense(model, Empirical()), z, None, y)
    assert relative_error(empirical, scores.T @ scores / 9) < tolerance("identity")


def test_collections_that_all_examples_share_travel_in_the_inputs(tolerance):
    case = CASES["categorical"]
    plain, params, x, y = case.problem()

    def apply(params, inputs):
        mean, variance = inputs["statistics"]
        return mlp(params, (inputs["x"] - mean[None]) / jnp.sqrt(variance)[None])

    model = ng.Model(apply, case.family, in_axes={"x": 0, "statistics": None})
    mean, variance = x.mean(0), x.var(0)
    inputs = {"x": x, "statistics": (mean, variance)}
    normalised = (x - mean[None]) / jnp.sqrt(variance)[None]
    given = jax.jit(model.loss)(params, inputs, y)
    assert relative_error(given, plain.loss(params, normalised, y)) < tolerance(
        "identity"
    )
    for form in (Dense, MatrixFree, KLHessian):
        given = dense_of(form(model), params, inputs)
        expected = dense_of(form(plain), params, normalised)
        assert relative_error(given, expected) < tolerance("identity")

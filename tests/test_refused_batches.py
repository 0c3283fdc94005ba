"""Batches and models that make no sense are refused in words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from bad_input import (
    CATEGORICAL,
    CLASSES,
    DENSE,
    MODEL,
    PARAMS,
    N,
    X,
    Y,
    refused,
    refuses,
    updated,
)

import natgrad as ng


@pytest.mark.parametrize("targets", [Y[:-1], Y[:, None], np.append(Y, 0), 0])
def test_labels_of_the_wrong_shape_are_refused_with_both_shapes(targets):
    words = "targets must have shape (4,)", "(4, 3)", f"got {np.shape(targets)}"
    refused(lambda: MODEL.loss(PARAMS, X, targets), *words)
    refused(lambda: DENSE.value_and_grad(PARAMS, X, targets), *words)
    tx = ng.empirical_fisher(0.1, MODEL)
    refused(lambda: updated(tx, inputs=X, targets=targets), *words)


def test_an_empty_batch_is_refused():
    none = X[:0], Y[:0]
    refused(lambda: MODEL.loss(PARAMS, *none), "batch is empty", "(0, 2)")
    for make in ng.CURVATURES.values():
        tx = ng.scale_by_curvature(make(MODEL))
        with refuses("batch is empty", "(0, 2)"):
            updated(tx, inputs=none[0], targets=none[1])


def test_inputs_of_different_lengths_are_refused():
    model = ng.Model(lambda params, x: x["a"] @ params["w"] + x["b"], CATEGORICAL)
    x = {"a": X, "b": np.ones((N + 1, CLASSES))}
    words = "same leading axis", "(4, 2)", "(5, 3)", "in_axes"
    refused(lambda: model.loss(PARAMS, x, Y), *words)
    tx = ng.scale_by_curvature(ng.curvature.Dense(model))
    refused(lambda: updated(tx, inputs=x), *words)


def test_lists_in_place_of_an_array_are_refused_with_the_cure():
    words = "got shapes [()]. A list is a tree of its items: pass an array"
    refused(lambda: MODEL.loss(PARAMS, X.tolist(), Y), words)


@pytest.mark.parametrize("in_axes", [1, -1, "0", {"a": 0, "b": 1}])
def test_in_axes_other_than_0_and_none_are_refused(in_axes):
    model = ng.Model(
        lambda params, x: x["a"] @ params["w"] + x["b"], CATEGORICAL, in_axes=in_axes
    )
    x = {"a": X, "b": np.ones((N, CLASSES))}
    words = "in_axes=...) may hold 0 and None only", f"got {in_axes}"
    refused(lambda: model.loss(PARAMS, x, Y), *words)
    refused(lambda: ng.curvature.Dense(model).at(PARAMS, x), *words)


def test_in_axes_of_another_structure_than_the_inputs_are_refused():
    model = ng.Model(MODEL.apply, CATEGORICAL, in_axes={"x": 0})
    refused(lambda: model.loss(PARAMS, X, Y), "in_axes", "{'x': 0}")


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda p, x: jnp.arange(N), ("one real floating array", "int")),
        (lambda p, x: (x @ p["w"], 0.0), ("one real floating array", "float64")),
        (lambda p, x: 1.0, ("one real floating array",)),
        (lambda p, x: jnp.sum(x @ p["w"], axis=1), ("at least 2 axes", "(4,)")),
        (lambda p, x: (x @ p["w"])[:2], ("2 rows for 4 examples", "(2, 3)")),
        (lambda p, x: (x @ p["w"])[:, :1], ("at least two logits", "Bernoulli()")),
    ],
)
def test_outputs_that_parametrise_no_law_are_refused(apply, words):
    model = ng.Model(apply, CATEGORICAL)
    refused(lambda: model.loss(PARAMS, X, 0 * Y), *words)
    refused(lambda: ng.curvature.Dense(model).at(PARAMS, X), *words)


@pytest.mark.parametrize("shape", [(N + 1,), (N, CLASSES), ()])
def test_weights_of_the_wrong_shape_are_refused(shape):
    weights = lambda x: jnp.ones(shape)
    model = ng.Model(MODEL.apply, CATEGORICAL, weights=weights)
    words = "weights(inputs) must have shape (4,)", f"got {shape}"
    refused(lambda: model.loss(PARAMS, X, Y), *words)
    refused(lambda: ng.curvature.Dense(model).at(PARAMS, X), *words)


def test_a_model_needs_a_function_a_family_and_a_positive_chunk():
    with refuses("(params, inputs) -> z", "3"):
        ng.Model(3, CATEGORICAL)
    with refuses("natgrad Family", "Categorical()", "categorical"):
        ng.Model(MODEL.apply, "categorical")
    with refuses("chunk_size must be at least 1", "0"):
        ng.Model(MODEL.apply, CATEGORICAL, chunk_size=0)


@pytest.mark.parametrize("label", [-1, CLASSES, 10**6])
def test_labels_out_of_range_are_refused_where_their_values_are_known(label):
    y = np.array([0, 1, label, 2])
    words = "impossible under Categorical", f"targets[2] = {label}", "weight 0"
    empirical = ng.empirical_fisher(0.1, MODEL)
    for call in (
        lambda: MODEL.loss(PARAMS, X, y),
        lambda: jax.grad(MODEL.loss)(PARAMS, X, y),
        lambda: DENSE.value_and_grad(PARAMS, X, y),
        lambda: updated(empirical, inputs=X, targets=y),
    ):
        with refuses(*words):
            call()


def test_the_first_labels_out_of_range_are_named_with_their_places():
    y = np.array([-1, 7, -100, 9])
    words = "targets[0] = -1, targets[1] = 7, targets[2] = -100 and 1 more", "y >= 0"
    for call in (
        lambda: MODEL.loss(PARAMS, X, y),
        lambda: jax.jit(lambda params: MODEL.loss(params, X, y))(PARAMS),
    ):
        with refuses(*words):
            call()


@pytest.mark.parametrize(
    ("family", "z_shape", "y_shape", "cure"),
    [
        (CATEGORICAL, (N, CLASSES), (N, 1), "Pass y[:, 0]"),
        (CATEGORICAL, (N, 2, CLASSES), (N, 2, 1), "Pass y[:, :, 0]"),
        (ng.families.Bernoulli(), (N,), (N, 1), "Pass y[:, 0]"),
        (ng.families.NormalMean(), (N, 1), (N,), "Let apply return z[:, 0]"),
        (ng.families.Bernoulli(), (N, 1), (N,), "pass y[..., None]"),
    ],
)
def test_an_axis_of_size_1_too_many_is_named_with_its_cure(
    family, z_shape, y_shape, cure
):
    model = ng.Model(lambda params, x: params, family)
    z, y = jnp.zeros(z_shape), np.zeros(y_shape, int)
    refused(lambda: model.loss(z, X, y), f"got {y_shape}", cure)


@pytest.mark.parametrize(
    "branch",
    [
        lambda z: z if z[0, 0] > 0 else -z,
        lambda z: jnp.asarray(np.tanh(np.asarray(z))),
        lambda z: z * float(z[0, 0]),
        lambda z: z[z[:, 0] > 0],
    ],
)
def test_a_model_that_leaves_jax_gets_the_error_of_jax_and_a_line_of_ours(branch):
    apply = lambda params, x: branch(x @ params["w"])
    model = ng.Model(apply, CATEGORICAL, example_inputs=X[:1])
    for call in (
        lambda: jax.eval_shape(model.loss, PARAMS, X, Y),
        lambda: ng.curvature.Dense(model).at(PARAMS, X),
        lambda: ng.kfac(0.1, model).init(PARAMS),
    ):
        with pytest.raises((jax.errors.JAXTypeError, jax.errors.JAXIndexError)) as info:
            call()
        assert any("apply must be traceable" in note for note in info.value.__notes__)

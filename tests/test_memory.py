"""Memory follows a rule of sizes: columns in chunks, refusals before allocating."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CASES, LABELS, ravel, relative_error

import natgrad as ng
from natgrad.curvature import (
    KFAC,
    Automatic,
    BlockDiagonal,
    Dense,
    Diagonal,
    Gram,
    KLHessian,
    LayerDiagonal,
    MatrixFree,
    visits,
)

CLASSES, N, FEATURES = 500, 4, 4
FEW = 2**16  # numbers alive at once; K·P of one example are 2^20


def of_many_classes(classes=CLASSES):
    model = ng.Model(
        lambda p, x: x @ p["w"],
        ng.families.Categorical(),
        example_inputs=jnp.ones((1, FEATURES), jnp.float32),
    )
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return model, {"w": shaped(FEATURES, classes)}, shaped(N, FEATURES)


def temporaries(function, *arguments):
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("form", [Diagonal, BlockDiagonal])
@pytest.mark.parametrize("both", [False, True])
def test_score_columns_of_one_example_are_taken_in_chunks(form, both, monkeypatch):
    monkeypatch.setattr(visits, "ELEMENTS", FEW)
    model, params, x = of_many_classes(CLASSES if form is Diagonal else 40)
    curvature = form(model)
    used = curvature.value_and_grad if both else curvature.estimate
    y = (jax.ShapeDtypeStruct((N,), jnp.int32),) if both else ()
    kept = 4 * sum(
        leaf.size for leaf in jax.tree.leaves(jax.eval_shape(used, params, x, *y))
    )
    assert temporaries(used, params, x, *y) < 10 * 4 * FEW + 4 * kept


EVERY = [(n, k) for n in ("categorical", "normal", "bernoulli") for k in LABELS]


@pytest.mark.parametrize(("name", "labels"), EVERY)
def test_chunks_of_columns_change_no_result(name, labels, monkeypatch):
    """One or two columns of one example after the other."""
    model, params, x, y = CASES[name].problem(examples=3)
    curvature, key = Dense(model, LABELS[labels]), jax.random.PRNGKey(0)
    run = lambda: jax.jit(lambda *a: curvature.value_and_grad(*a))(params, x, y, key)
    whole = run()
    monkeypatch.setattr(visits, "ELEMENTS", 60)
    for given, expected in zip(run(), whole, strict=True):
        assert relative_error(ravel(given), ravel(expected)) < 1e-10


@pytest.mark.parametrize("form", [KFAC, LayerDiagonal])
def test_layers_never_hold_all_score_columns(form):
    """All of them are K N C = 10^6 numbers, and G of K-FAC is C²."""
    model, params, x = of_many_classes()
    kept = jax.eval_shape(form(model).estimate, params, x)
    kept = 4 * sum(leaf.size for leaf in jax.tree.leaves(kept))
    assert temporaries(form(model).estimate, params, x) < 1.5 * kept + 4 * 10**5


def test_the_automatic_choice_sees_memory():
    """M = 6000 columns of 6000 parameters make a matrix of 36 million numbers."""
    model, params, _ = of_many_classes(1500)
    chosen = Automatic(model).specialize(params)
    x = jax.ShapeDtypeStruct((N, FEATURES), jnp.float32)
    assert type(chosen.choice(params, x)) is MatrixFree
    few = jax.ShapeDtypeStruct((2, FEATURES), jnp.float32)
    assert type(chosen.choice(params, few)) is Gram


HUGE = {"w": jax.ShapeDtypeStruct((1, 3_000_000), jnp.float32)}


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (form, r"3\.6e\+04 GB.*Use .* instead")
        for form in (Dense, KLHessian, BlockDiagonal)
    ]
    + [(KFAC, r"3\.353e\+04 GiB.*Keep its diagonal")],
)
def test_a_matrix_that_no_machine_holds_is_refused_with_its_size(form, words):
    model = ng.Model(
        lambda p, x: x @ p["w"],
        ng.families.NormalMean(),
        example_inputs=jnp.ones((1, 1), jnp.float32),
    )
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(form(model).init, HUGE)


def test_a_sample_space_that_no_machine_holds_is_refused():
    model, params, _ = of_many_classes(10_000)
    x = jax.ShapeDtypeStruct((1000, FEATURES), jnp.float32)
    with pytest.raises(ValueError, match="Sketched\\(1\\) labels, fewer examples"):
        jax.eval_shape(Gram(model).at, params, x)


def test_factors_of_an_example_are_columns_of_their_own():
    """784 pixels: column t is the score of pixel t, and 0 elsewhere."""
    model = ng.Model(lambda p, x: x * p[None], ng.families.Bernoulli())
    params, x = jnp.full(6, 0.3), np.random.default_rng(0).normal(size=(2, 6))
    z = x * 0.3
    p = 1 / (1 + np.exp(-z))
    expected = np.diag((x**2 * p * (1 - p)).mean(0))
    assert relative_error(Dense(model).at(params, x).dense(), expected) < 1e-12

"""Gram and MatrixFree in chunks of examples, and Gram's rows over devices."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from chunk_problems import CASES, CONV, KEY, Y
from problems import ravel, relative_error

import natgrad as ng
from natgrad.curvature import (
    Gram,
    GramBlocks,
    MatrixFree,
    Sampled,
)
from natgrad.curvature.chunks import fitting


def solved(curvature, params, x):
    """B, B Bᵀ, and a damped solution."""
    metric = curvature.at(params, x, Y, KEY)
    v = jax.tree.map(jnp.cos, params)
    return metric.jacobian.explicit(), metric.jacobian.gram(), metric.solve(v, 0.1)


def agree(found, expected, limit=1e-12):
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    for a, b in pairs:
        assert relative_error(a, b) < limit


# Labels and complex outputs make rows, whatever is then done with their blocks.
PAIRS = [(name, Gram) for name in CASES]
PAIRS += [(n, GramBlocks) for n in CASES if n not in ("empirical", "wave function")]


@pytest.mark.parametrize(("name", "form"), PAIRS)
def test_chunks_of_examples_change_no_result(name, form):
    """3 of 8 at a time: two chunks are full, and the last is filled up."""
    arguments, params, x = CASES[name]
    both = [form(*arguments), form(*arguments, chunk_size=3)]
    found = jax.jit(lambda p, x: [solved(each, p, x) for each in both])(params, x)
    agree(found[1], found[0])


@pytest.mark.parametrize(
    ("alias", "form"), [(ng.gram, Gram), (ng.gram_blocks, GramBlocks)]
)
def test_an_alias_with_options_is_natural_gradient_with_its_curvature(alias, form):
    (model, labels), params, x = CASES["convolution"]
    curvature = lambda model: form(model, labels)

    def program(tx):
        """The first update as text."""
        update = lambda p: tx.update(p, tx.init(p), p, inputs=x)[0]
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(update)(params)))

    by_hand = ng.natural_gradient(0.3, model, damping=1e-2, curvature=curvature)
    assert program(alias(0.3, model, labels=labels)) == program(by_hand)
    assert program(alias(0.3, model, labels=Sampled(2))) != program(by_hand)


def test_derivatives_go_through_chunks():
    """Of a solution, its matrix and its products, in float64."""
    (model, _), params, x = CASES["convolution"]
    v = jax.tree.map(jnp.cos, params)

    def solved(curvature, params):
        metric = curvature.at(params, x, Y, KEY)
        found = metric.solve(v, 0.1)
        return jnp.vdot(ravel(found), ravel(metric.mv(found)))

    def multiplied(curvature, params):
        return jnp.vdot(ravel(v), ravel(curvature.at(params, x, Y, KEY).mv(v)))

    @jax.jit
    def gradients(params):
        return [
            [
                jax.grad(total, 1)(form(model, Sampled(1), chunk_size=size), params)
                for size in (None, 3)
            ]
            for total, form in ((solved, Gram), (multiplied, MatrixFree))
        ]

    for whole, chunked in gradients(params):
        agree(chunked, whole, 1e-11)


@pytest.mark.parametrize("name", ["convolution", "centred"])
def test_products_in_chunks_are_those_of_the_batch(name):
    arguments, params, x = CASES[name]

    def found(curvature, params):
        metric = curvature.at(params, x, Y, KEY)
        return metric.mv(params), metric.curvature.pulled_noise(metric._batch(), KEY)

    both = [MatrixFree(*arguments), MatrixFree(*arguments, chunk_size=3)]
    whole, chunked = jax.jit(lambda p: [found(each, p) for each in both])(params)
    agree(chunked, whole)


# What a budget of bytes decides -------------------------------------------------------


def sines(params, x):
    """No layer reads a weight as it is, so that all rows are written out."""
    hidden = jnp.tanh(x @ jnp.sin(params["a"]))
    return jnp.tanh(hidden @ jnp.sin(params["b"])) @ jnp.sin(params["c"])


def normal(**shapes):
    rng = np.random.default_rng(1)
    return {n: jnp.asarray(rng.normal(size=s), "float32") for n, s in shapes.items()}


BUDGETED = {
    "sines": (
        (ng.Model(sines, ng.families.Categorical()), Sampled(1)),
        normal(a=(5, 40), b=(40, 40), c=(40, 3)),
        normal(x=(48, 5))["x"],
    ),
    "convolution": (
        (CONV, Sampled(1)),
        normal(k=(3, 2, 30), w=(30, 3)),
        normal(x=(48, 24, 2))["x"],
    ),
    "several columns": (
        (ng.Model(sines, ng.families.Categorical()),),
        normal(a=(5, 30), b=(30, 30), c=(30, 3)),
        normal(x=(32, 5))["x"],
    ),
}


def solving(name, form, **options):
    arguments, params, x = BUDGETED[name]
    curvature = form(*arguments, **options)
    return lambda p, x, v: curvature.at(p, x, key=KEY).solve(v, 0.1), (params, x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "budget"),
    [
        ("sines", Gram, 130_000),  # one example at a time
        ("convolution", GramBlocks, 400_000),
        ("several columns", Gram, 500_000),
    ],
)
def test_the_program_stays_within_the_budget(name, form, budget):
    """By XLA's own account of the compiled program."""
    solve, (params, x) = solving(name, form, chunk_size="auto", memory_budget=budget)
    with jax.enable_x64(False):
        program = jax.jit(solve).lower(params, x, params).compile()
    assert program.memory_analysis().temp_size_in_bytes <= budget


def test_a_budget_that_holds_no_example_is_an_error_that_says_the_least():
    def traced(budget):
        options = {"chunk_size": "auto", "memory_budget": budget}
        solve, (params, x) = solving("sines", MatrixFree, **options)
        jax.eval_shape(solve, params, x, params)

    with pytest.raises(ValueError, match=r"memory_budget=\d+ or more") as error:
        traced(1)
    least = int(re.search(r"memory_budget=(\d+) or", str(error.value))[1])
    traced(least)
    with pytest.raises(ValueError, match="or more"):
        traced(least - 1)


@pytest.mark.parametrize("budget", [1_600, 2_000, 3_000, 9_999])
@pytest.mark.parametrize(
    "phases", [[(100, 10)], [(1000, 0), (50, 30)], [(900, 1), (100, 20), (10, 25)]]
)
def test_a_budget_takes_about_as_many_examples_as_fit(phases, budget):
    """Phases of a program take a + b c bytes; XLA half as many again."""

    def alive(size):
        return max(a + b * (100 if size is None else size) for a, b in phases)

    form = Gram(CONV, chunk_size="auto", memory_budget=budget)
    found = fitting(form, alive, 100)
    most = max(n for n in range(1, 101) if 1.5 * alive(n) <= budget)
    if found is None:
        assert 2 * alive(None) <= budget
    else:
        assert 1.5 * alive(found) <= budget
        assert found > most / 2


@pytest.mark.parametrize("form", [Gram, MatrixFree])
def test_chunks_that_cannot_be_are_errors(form):
    with pytest.raises(ValueError, match=r"chunk_size=.*'auto'"):
        form(CONV, chunk_size="many")
    with pytest.raises(ValueError, match="number of bytes"):
        form(CONV, chunk_size="auto", memory_budget=0)


def test_products_of_examples_that_need_each_other_are_refused_in_chunks():
    (model,), params, x = CASES["examples that need each other"]
    metric = MatrixFree(model, chunk_size=3).at(params, x)
    with pytest.raises(ValueError, match="leave chunk_size out"):
        jax.eval_shape(metric.mv, params)


# Over devices: 4 parts of a mapped axis ---------------------------------------------


def parts_of(x):
    return x.reshape(4, -1, *x.shape[1:])


@pytest.mark.parametrize(
    ("name", "chunk_size", "form"),
    [
        ("convolution", 1, Gram),
        ("centred", None, Gram),
        ("centred", 1, GramBlocks),
    ],
)
def test_rows_over_devices_are_those_of_one(name, chunk_size, form):
    """The matrix by block rows, its block Cholesky, and products, on every device."""
    arguments, params, x = CASES[name]
    v = jax.tree.map(jnp.cos, params)
    whole = form(*arguments)
    spread = form(*arguments, chunk_size=chunk_size, axis_name="parts")

    def found(curvature, x, y):
        metric = curvature.at(params, x, y, KEY)
        failed = metric.solution(metric.mv(v), 0.0)
        exact = metric.jacobian.gram(), metric.solve(v, 0.1), metric.diagonal()
        return *exact, failed

    each = jax.vmap(functools.partial(found, spread), axis_name="parts")
    given, expected = jax.jit(
        lambda x: (each(parts_of(x), parts_of(Y)), found(whole, x, Y))
    )(x)
    for part in range(4):
        *mine, failed = jax.tree.map(lambda a, part=part: a[part], given)
        agree(mine, expected[:-1], 1e-10)
        assert failed.fallback
        agree(failed.value, expected[-1].value, 1e-6)

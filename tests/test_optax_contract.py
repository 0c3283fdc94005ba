"""optax's own contract: a table of transformations and of what optax does with them.

Each row is a transformation of the library (`optax_rows`), each column a wrapper or a
utility of optax (`optax_columns`). The oracle of a wrapper is the bare transformation,
whose step is tested elsewhere. What cannot work is an error that says so.
"""

from __future__ import annotations

import functools
import inspect
import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import pytest
from contract import MODEL, X, Y, describe, equal, start
from optax_columns import HALF, columns_of, one, part
from optax_rows import COPIES, LAYERWISE, NOT_OBSERVED, ROWS, of_batch

import natgrad as ng

EVERY = pytest.mark.parametrize("name", ROWS)
# Complex parameters mean nothing to them.
REAL = {"mirror_descent", "dual_mirror_descent", "scale_by_dual", "ivon"}
HIDDEN = optax.MaskedNode()


def test_the_table_has_every_transformation():
    gives = lambda f: str(inspect.signature(f).return_annotation)
    found = {
        name
        for home in (ng, ng.inference)
        for name in home.__all__
        if inspect.isfunction(f := getattr(home, name)) and "GradientTransf" in gives(f)
    }
    assert found == ROWS.keys()
    assert all(
        isinstance(row.tx(), optax.GradientTransformationExtraArgs)
        for row in ROWS.values()
    )


# The state --------------------------------------------------------------------------


@EVERY
def test_map_params_finds_the_copies_of_the_parameters_and_nothing_else(name):
    tx, params = ROWS[name].tx(), start()
    state = tx.init(params)
    specs = {"w": "spec of w", "b": "spec of b"}
    marked = optax.tree.map_params(
        tx, lambda _, spec: spec, state, specs, transform_non_params=lambda _: "other"
    )
    leaves = jax.tree.leaves(marked)
    copies = COPIES.get(name, 0)
    assert [leaves.count(spec) for spec in specs.values()] == [copies, copies]
    assert leaves.count("other") == len(leaves) - 2 * copies
    same = optax.tree.map_params(tx, lambda value: value, state)
    assert describe(same) == describe(state)


@EVERY
def test_no_parameters_have_a_state_and_no_update(name):
    tx = ROWS[name].tx()
    for nothing in ({}, (), {"w": HIDDEN, "b": None}):
        state = tx.init(nothing)
        updates, after = tx.update(nothing, state, nothing, inputs=X, unknown=1)
        assert updates == nothing
        assert describe(after) == describe(state)


@EVERY
def test_complex_parameters_have_complex_updates_or_are_refused(name):
    """test_complex_parameters.py has the values."""
    split = lambda p: {"w": p["w"].real + p["w"].imag ** 2, "b": p["b"]}
    model = ng.Model(
        lambda p, x: MODEL.apply(split(p), x), MODEL.family, example_inputs=X[:1]
    )
    tx, params = ROWS[name].tx(model), start() | {"w": start()["w"] * (1 + 1j)}
    if name in REAL:
        with pytest.raises(ValueError, match=r"real floating array.*complex"):
            tx.init(params)
        return

    def step(params):
        arguments = of_batch(params, ROWS[name].needs, model)
        state = tx.init(params)
        updates, after = tx.update(params, state, params, **arguments)
        assert describe(after) == describe(state)
        return updates

    given = jax.eval_shape(step, params)
    assert describe(given) == describe(params)


class Mixed(NamedTuple):
    """Parameters of two low precisions beside what is no array at all."""

    w: jax.Array
    b: jax.Array
    nothing: None = None
    empty: tuple = ()


@EVERY
def test_updates_have_the_dtypes_and_the_containers_of_the_parameters(name):
    params = Mixed(*(start(d)[k] for k, d in (("w", jnp.bfloat16), ("b", "float16"))))
    model = ng.Model(
        lambda p, x: x @ p.w + p.b[None], MODEL.family, example_inputs=X[:1]
    )
    row = ROWS[name]
    tx = row.tx(model)

    def step(params):
        grads = jax.grad(model.loss)(params, X, Y)
        extra = of_batch(params, row.needs, model)
        state = tx.init(params)
        updates, after = tx.update(grads, state, params, **extra)
        return state, updates, after

    before, updates, after = jax.eval_shape(step, params)
    assert describe(updates) == describe(jax.eval_shape(lambda: params))
    assert describe(before) == describe(after)


@EVERY
def test_a_python_number_is_a_parameter(name):
    params = start() | {"scale": 0.5}
    model = ng.Model(
        lambda p, x: x @ p["w"] * p["scale"] + p["b"][None],
        MODEL.family,
        example_inputs=X[:1],
    )
    row = ROWS[name]

    def step():
        grads, tx = jax.grad(model.loss)(params, X, Y), row.tx(model)
        extra = of_batch(params, row.needs, model)
        return tx.update(grads, tx.init(params), params, **extra)[0]

    updates = jax.eval_shape(step)
    assert updates.keys() == params.keys()
    assert updates["scale"].shape == ()


@EVERY
def test_injected_hyperparameters_are_got_and_set_by_name(name):
    row = ROWS[name]
    tx = row.injected()
    state = tx.init(start())
    for key, value in row.arguments(MODEL).items():
        if isinstance(value, float):
            assert optax.tree.get(state.hyperparams, key) == value
            state = optax.tree.set(state, **{key: jnp.asarray(value / 2)})
            assert optax.tree.get(state.hyperparams, key) == value / 2
    assert describe(optax.tree.map_params(tx, lambda value: value, state)) == describe(
        state
    )


# The update -------------------------------------------------------------------------

PAIRS = [(name, column) for name in ROWS for column in columns_of(name)]


@functools.cache
def table(name):
    """The bare update and the columns, from one program, and what columns raised."""
    row, raised = ROWS[name], {}

    @jax.jit
    def program(params):
        extra = of_batch(params, row.needs)
        found = {"bare": one(row.tx(), params, extra), "part": part(row, params)}
        for column, of in columns_of(name).items():
            try:
                found[column] = of(row, params, extra)
            except ValueError as error:
                raised[column] = str(error)
        return found

    return program(start()), raised


@pytest.mark.parametrize(("name", "column"), PAIRS)
def test_a_wrapper_gives_the_bare_update_or_says_why_not(name, column, tolerance):
    found, raised = table(name)
    if column == "looked_ahead" and name in NOT_OBSERVED:
        assert re.search(NOT_OBSERVED[name], raised[column])
        return
    assert column not in raised, raised[column]
    expected = found["part" if column == "masked" else "bare"]
    rtol = tolerance("identity", "float32" if column == "accumulated" else "float64")
    equal(found[column], expected, rtol)


@pytest.mark.parametrize("name", sorted(LAYERWISE))
def test_a_masked_layer_curvature_says_that_it_needs_the_whole_tree_at_init(name):
    with pytest.raises(ValueError, match=r"build it from model.with_frozen\(params\)"):
        optax.masked(ROWS[name].tx(), HALF).init(start())

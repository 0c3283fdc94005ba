"""Sums over a named axis, with vmap, which has axes and no devices."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_steps import apply, problem
from jax.sharding import AxisType, PartitionSpec

import natgrad as ng
from natgrad.curvature import KFAC, KFOC, Dense, Sampled, SubBatch
from natgrad.layers.interactions import exchanges

PARTS = 4
PARAMS, X, Y = problem("float64")
# The last part is masked altogether, and parts do not weigh the same.
MASK = np.random.default_rng(1).uniform(size=len(X)) * (np.arange(len(X)) < 24)
MODEL = ng.Model(
    lambda params, inputs: apply(params, inputs["x"]),
    ng.families.Categorical(),
    example_inputs={"x": X[:1], "mask": MASK[:1]},
    weights=lambda inputs: inputs["mask"],
)
INPUTS = {"x": jnp.asarray(X), "mask": jnp.asarray(MASK)}
CURVATURES = {
    "kfac": lambda **axis: KFAC(MODEL, Sampled(1), **axis),
    "kfoc": lambda **axis: KFOC(MODEL, **axis),
    "dense": lambda **axis: Dense(MODEL, Sampled(2), **axis),
    "sub-batch": lambda **axis: SubBatch(Dense(MODEL, **axis), 1),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_weighted_examples_are_averaged_over_all_parts(name, tolerance):
    def measured(curvature, inputs, targets):
        return curvature.value_and_grad(PARAMS, inputs, targets, jax.random.PRNGKey(5))

    parts = jax.tree.map(
        lambda leaf: leaf.reshape(PARTS, -1, *leaf.shape[1:]), (INPUTS, jnp.asarray(Y))
    )
    split = functools.partial(measured, CURVATURES[name](axis_name="parts"))
    found = jax.jit(jax.vmap(split, axis_name="parts"))(*parts)
    whole = jax.jit(functools.partial(measured, CURVATURES[name]()))(INPUTS, Y)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        for part in a:
            np.testing.assert_allclose(part, b, rtol=tolerance("identity"), atol=1e-12)


def on_a_mesh(curvature, inputs):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.tree.map(lambda leaf: PartitionSpec("data"), inputs)
    jax.eval_shape(
        jax.shard_map(
            lambda x: curvature.estimate(PARAMS, x),
            mesh=mesh,
            in_specs=(split,),
            out_specs=PartitionSpec(),
        ),
        inputs,
    )


def synchronised(p, x):
    """Normalised by the mean of all devices, in a loop and a call."""
    mean = jax.jit(lambda h: jax.lax.pmean(h.mean(0, keepdims=True), "d"))
    return jax.lax.scan(lambda h, _: (h - mean(h), None), x @ p, length=2)[0]


def gathered(p, x):
    """Parameters are on all devices, and examples stay on theirs."""
    return jax.nn.relu(x @ jax.lax.pmean(p, "d"))


@pytest.mark.parametrize("make", [KFAC, Dense])
def test_statistics_of_all_devices_are_refused_inside_the_model(make):
    run = make(ng.Model(synchronised, ng.families.NormalMean()), axis_name="d").at
    with pytest.raises(ValueError, match="on each device alone"):
        jax.eval_shape(
            jax.vmap(lambda x: run(jnp.ones((3, 2)), x).dense(), axis_name="d"),
            jnp.ones((2, 4, 3)),
        )


def test_what_is_sent_between_devices_is_found():
    seen, models = [], (synchronised, gathered)

    def look(x):
        seen.extend(exchanges(f, jnp.ones((3, 2)), x, 0, "d") for f in models)
        return x

    jax.eval_shape(jax.vmap(look, axis_name="d"), jnp.ones((2, 4, 3)))
    assert seen == [True, False]


@pytest.mark.parametrize("make", [KFAC, Dense])
def test_a_batch_that_is_secretly_a_part_is_an_error(make):
    with pytest.raises(ValueError, match="axis_name='data'"):
        on_a_mesh(make(MODEL), INPUTS)
    on_a_mesh(make(MODEL, axis_name="data"), INPUTS)


def test_a_mesh_with_explicit_axes_is_an_error_that_says_what_to_do():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    batch = jax.device_put((INPUTS, Y), jax.NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(ValueError, match=r"AxisType\.Auto"):
        jax.eval_shape(MODEL.loss, PARAMS, *batch)
    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, rows), PARAMS)
    with pytest.raises(ValueError, match=r"parameter \['b1'\].*AxisType\.Auto"):
        Dense(MODEL).init(params)


def test_what_only_asks_for_its_place_among_the_devices_is_taken_as_it_is():
    """A key of one's own for each device, as dropout has."""

    def shifted(params, x):
        return apply(params, x + jax.lax.axis_index("parts"))

    f = lambda apply: Dense(ng.Model(apply, ng.families.Categorical()))
    part = dataclasses.replace(f(shifted), axis_name="parts")
    halves = jnp.asarray(X).reshape(2, -1, X.shape[-1])
    moved = np.repeat(np.arange(2), len(X) // 2)[:, None]

    @jax.jit
    def both(params):
        split = jax.vmap(lambda x: part.estimate(params, x), axis_name="parts")
        return split(halves), f(apply).estimate(params, X + moved)

    found, expected = both(PARAMS)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-13)


def test_examples_that_are_not_there_cannot_be_spread():
    model = ng.Model(lambda params, _: params["z"][None], ng.families.Categorical())
    curvature = Dense(model, axis_name="data")
    with pytest.raises(ValueError, match="no axis of examples"):
        curvature.estimate({"z": jnp.zeros(3)}, None)

"""`observe` refreshes the statistics of its own transformations, and no others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    LAMBDA,
    MODEL,
    WEIGHT,
    X,
    Y,
    describe,
    equal,
    gradient_of,
    oracle,
    start,
)

import natgrad as ng
from natgrad.curvature import KFAC, Dense, Diagonal, Empirical, Exact, Sampled
from natgrad.transforms.state import ScaleByCurvatureState

HALVES = {"w": "w", "b": "b"}


def scaled(curvature):
    return ng.scale_by_curvature(curvature, damping=LAMBDA)


def states(tree):
    """The states of `scale_by_curvature`, in order."""
    is_state = lambda node: isinstance(node, ScaleByCurvatureState)
    return list(filter(is_state, jax.tree.leaves(tree, is_leaf=is_state)))


def test_a_group_is_observed_and_the_other_left_as_it_was(tolerance):
    curvature, params = Dense(MODEL), start()
    tx = optax.multi_transform({k: scaled(curvature) for k in HALVES}, HALVES)
    before = tx.init(params)
    part = {"w": params["w"], "b": optax.MaskedNode()}
    see = lambda state: ng.observe(
        curvature, state, part, inputs=X, model_params=params
    )
    of_b, of_w = states(jax.jit(see)(before))
    equal(of_b, states(before)[0], 0)
    fisher = oracle(params).fisher[WEIGHT, WEIGHT]
    np.testing.assert_allclose(of_w.statistics, fisher, tolerance("oracle"))
    assert of_w.estimates == 1


def test_groups_of_equal_shapes_are_told_apart_by_name():
    params = {"a": jnp.array([0.1, 0.2]), "b": jnp.array([0.3, 0.4])}
    apply = lambda p, x: x[:, :1] * p["a"].sum() + x[:, 1:] * p["b"].sum()
    curvature = Dense(ng.Model(apply, ng.families.NormalMean()))
    groups = {k: scaled(curvature) for k in params}
    state = optax.multi_transform(groups, {k: k for k in params}).init(params)
    part = {"a": params["a"], "b": optax.MaskedNode()}
    see = lambda state, inputs: ng.observe(
        curvature, state, part, inputs=inputs, model_params=params
    )
    of_a, of_b = states(jax.jit(see)(state, jnp.ones((8, 2))))
    np.testing.assert_allclose(of_a.statistics, jnp.ones((2, 2)))
    assert not np.any(of_b.statistics)


@pytest.mark.parametrize(
    ("held", "given"),
    [
        (Dense(MODEL, Empirical()), Dense(MODEL)),
        (Dense(MODEL, Sampled(1)), Dense(MODEL, Sampled(2))),
        (KFAC(MODEL, Sampled(1)), KFAC(MODEL)),
    ],
)
def test_statistics_of_other_labels_are_refused_by_name(held, given):
    state = scaled(held).init(start())
    with pytest.raises(ValueError, match="No part of the optimizer state") as error:
        ng.observe(given, state, start(), inputs=X, targets=Y)
    for labels in (held.labels, given.labels):
        assert f"labels={labels}" in str(error.value)


@jax.jit
def two_ways(params):
    """Each group's update: after one call of observe with tx, and with inputs."""
    inner = lambda damping: optax.multi_transform(
        {
            "w": ng.scale_by_curvature(Dense(MODEL), damping=damping),
            "b": ng.scale_by_curvature(Diagonal(MODEL, Sampled(1)), damping=damping),
        },
        HALVES,
    )
    tx = optax.apply_if_finite(optax.inject_hyperparams(inner)(damping=LAMBDA), 3)
    state, grads = tx.init(params), gradient_of(params)
    seen = ng.observe(tx, state, params, inputs=X)
    whole = {"model_params": params}
    return (
        tx.update(grads, seen, params, **whole),
        tx.update(grads, state, params, inputs=X, **whole),
    )


def test_a_transformation_knows_its_curvatures_and_their_parameters(tolerance):
    (updates, state), (expected, after) = two_ways(start())
    equal(updates, expected, tolerance("solve"))
    assert describe(state) == describe(after)


@pytest.mark.parametrize("alias", [ng.kfac, ng.natural_gradient])
def test_an_optimizer_is_observed_without_naming_its_curvature(alias, tolerance):
    tx, params = alias(0.1, MODEL, damping=LAMBDA), start()

    @jax.jit
    def both(params):
        state, grads = tx.init(params), gradient_of(params)
        seen = ng.observe(tx, state, params, inputs=X)
        return (
            tx.update(grads, seen, params)[0],
            tx.update(grads, state, params, inputs=X)[0],
        )

    equal(*both(params), tolerance("solve"))


def test_states_that_cannot_be_told_apart_are_refused():
    one, other = Dense(MODEL), Dense(MODEL)
    twice = optax.chain(scaled(one), scaled(one))
    mixed = optax.chain(scaled(one), scaled(other))
    params = start()
    cannot = "it cannot be told which of them to refresh"
    with pytest.raises(ValueError, match=f"2 parts of the kind Dense.*{cannot}"):
        ng.observe(one, twice.init(params), params, inputs=X)
    with pytest.raises(ValueError, match=cannot):
        ng.observe(mixed, mixed.init(params), params, inputs=X)
    with pytest.raises(ValueError, match=cannot):
        ng.observe(scaled(one), mixed.init(params), params, inputs=X)
    both = states(ng.observe(twice, twice.init(params), params, inputs=X))
    assert [state.estimates for state in both] == [1, 1]
    first, second = mixed.init(params)
    assert ng.observe(one, first, params, inputs=X).estimates == 1
    assert second.estimates == 0


def test_a_batch_of_states_is_refused_outside_vmap(tolerance):
    curvature, params = Dense(MODEL), start()
    batch = jax.vmap(lambda _: scaled(curvature).init(params))(jnp.arange(3))
    with pytest.raises(ValueError, match=r"batch of states.*jax\.vmap"):
        ng.observe(curvature, batch, params, inputs=X)
    see = lambda state: ng.observe(curvature, state, params, inputs=X)
    each = jax.jit(jax.vmap(see))(batch).statistics
    fisher = np.broadcast_to(oracle(params).fisher, each.shape)
    np.testing.assert_allclose(each, fisher, tolerance("oracle"))


def test_what_has_no_curvature_is_refused():
    params = start()
    for tx in (optax.adam(0.1), ng.mirror_descent(0.1, ng.families.Poisson())):
        with pytest.raises(ValueError, match="holds a curvature"):
            ng.observe(tx, tx.init(params), params, inputs=X)
    with pytest.raises(ValueError, match=r"observe\(tx, state, params, inputs=x\)"):
        ng.observe(MODEL, None, params, inputs=X)


def test_a_state_says_whose_it_is_in_the_same_words_everywhere():
    """They are keys of checkpoints: no addresses, no order of a hash."""

    def words(curvature, params):
        (name,) = scaled(curvature).init(params).owner
        return name

    expected = "Dense(model=Categorical, labels=Exact()) of b[3], w[2, 3]"
    assert words(Dense(MODEL), start()) == expected
    kfac = [words(KFAC(MODEL, Sampled(1)), start()) for _ in range(2)]
    assert kfac[0] == kfac[1] != words(KFAC(MODEL, Exact()), start())
    many = {f"layer_{i}": jnp.ones(3) for i in range(100)}
    model = ng.Model(lambda p, x: x @ sum(p.values()), MODEL.family)
    long = words(Diagonal(model), many)
    other = words(Diagonal(model), many | {"layer_99": jnp.ones(4)})
    assert long != other
    assert long.endswith("… 52b1eacb")
    assert len(long) < 200

"""Networks of frameworks: the models are the networks, in each of their modes."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from framework_networks import (
    CASES,
    FAMILY,
    KEY,
    NAMES,
    C,
    LinenNet,
    N,
    NnxNet,
    case,
    data,
)
from modules import imports, library

import natgrad as ng
from natgrad.curvature import KFAC, Diagonal
from natgrad.integrations import network


@pytest.fixture(autouse=True)
def relaxed(single_precision):
    """As users have it: strictness is for the library."""
    with jax.numpy_rank_promotion("allow"):
        yield


def without_key(inputs):
    return {name: value for name, value in inputs.items() if name != "key"}


def assert_same(one, other, rtol=1e-5):
    raw = lambda a: jax.random.key_data(a) if is_key(a) else a
    is_key = lambda a: jnp.issubdtype(a.dtype, jax.dtypes.prng_key)
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(raw(a), raw(b), rtol, 1e-6)


@NAMES
def test_outputs_gradients_and_statistics_are_those_of_the_framework(name):
    net, inputs, train, evaluate, _ = case(name)
    _, y = data()

    def own_loss(params):
        z, state = train(params, inputs)
        return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(), (z, state)

    @jax.jit
    def both(params):
        (_, (z, state)), grads = jax.value_and_grad(own_loss, has_aux=True)(params)
        own = z, evaluate(params, inputs), grads, state
        model, given = net.model, without_key(inputs)
        return own, (
            model.outputs(params, inputs),
            net.eval_model.outputs(params, given),
            jax.grad(model.loss)(params, inputs, y),
            net.next_state(params, inputs),
        )

    own, given = both(net.params)
    for one, other in zip(own, given, strict=True):
        assert_same(other, one)
    assert not np.allclose(own[0], own[1], rtol=0.1)  # the modes do differ


@NAMES
def test_the_curvature_model_has_the_masks_of_the_batch_and_stored_statistics(name):
    """With the batch's own statistics stored it is the network in training."""
    net, inputs, _, _, statistics = case(name)

    @jax.jit
    def both(params):
        state = statistics(inputs["state"], net.next_state(params, inputs))
        stored = net.curvature_model.outputs(params, inputs | {"state": state})
        return net.model.outputs(params, inputs), stored

    assert_same(*both(net.params))
    found = [
        ng.layers.dependence(m.apply, net.params, inputs, m.in_axes)
        for m in (net.model, net.curvature_model)
    ]
    assert found[0] is ng.layers.Dependence.OTHERS
    assert found[1] is not ng.layers.Dependence.OTHERS


@NAMES
def test_kfac_reads_the_curvature_model_and_refuses_the_batchs_statistics(name):
    net, inputs, *_ = case(name)
    shapes = lambda model: jax.eval_shape(KFAC(model).estimate, net.params, inputs)
    assert jax.tree.leaves(shapes(net.curvature_model))
    with pytest.raises(ValueError, match="Gram, MatrixFree or Dense"):
        shapes(net.model)


@NAMES
def test_the_fisher_information_of_dropout_is_that_of_the_batchs_masks(name):
    net, inputs, train, _, _ = case(name, norm=False)
    assert net.curvature_model is net.model

    @jax.jit
    def both(params):
        outputs = lambda params: train(params, inputs)[0]
        p = jax.nn.softmax(outputs(params))
        in_z = jax.vmap(lambda p: jnp.diag(p) - jnp.outer(p, p))(p)
        expected = jax.tree.map(
            lambda j: jnp.einsum("nc...,ncd,nd...->...", j, in_z, j) / N,
            jax.jacrev(outputs)(params),
        )
        return Diagonal(net.model).at(params, inputs).diagonal(), expected

    given, expected = both(net.params)
    assert_same(given, expected, 1e-4)


def test_keys_are_asked_for_where_something_is_drawn():
    axes = {name: case(name, norm=False).net.model.in_axes for name in CASES}
    assert axes == {
        "nnx": {"x": 0, "state": None},  # the state counts the draws
        "linen": {"x": 0, "key": None},
        "equinox": {"x": 0, "key": 0, "state": None},
    }
    x, _ = data()
    mlp = eqx.nn.MLP(4, C, 5, 1, key=KEY)
    dense = nn.Dense(C)
    plain = [
        ng.from_equinox(mlp, FAMILY, x[:1]),
        ng.from_linen(dense, FAMILY, dense.init(KEY, x), x[:1]),
        ng.from_nnx(nnx.Linear(4, C, rngs=nnx.Rngs(0)), FAMILY, x[:1]),
    ]
    for net in plain:
        assert net.model.in_axes == net.eval_model.in_axes == {"x": 0}
        assert net.model.outputs(net.params, {"x": x}).shape == (N, C)


def test_calls_of_several_arguments_with_a_mask():
    x, y = data()
    mask = jnp.arange(N) > 1
    module = LinenNet(norm=False)
    net = ng.from_linen(
        module,
        FAMILY,
        module.init(KEY, x),
        {"a": x, "mask": mask},
        train=lambda net, x: net(2 * x["a"], train=True),
        evaluate=lambda net, x: net(2 * x["a"], train=False),
        weights=lambda inputs: inputs["x"]["mask"],
    )
    z = module.apply({"params": net.params}, 2 * x[2:], train=False)
    own = optax.softmax_cross_entropy_with_integer_labels(z, y[2:]).mean()
    inputs = {"x": {"a": x, "mask": mask}}
    assert_same(net.eval_model.loss(net.params, inputs, y), own)


def test_an_nnx_module_is_left_as_it_is_and_its_state_can_be_copied():
    x, _ = data()
    module = NnxNet(True, nnx.Rngs(0))
    before = jax.tree.map(jnp.copy, nnx.state(module))
    net = ng.from_nnx(module, FAMILY, x[:1])
    inputs = {"x": x, "state": nnx.state(nnx.clone(module), nnx.Not(nnx.Param))}
    z = net.model.outputs(net.params, inputs)
    assert_same(nnx.state(module), before)
    assert_same(module(x), z)  # which writes into the module
    assert_same(net.model.outputs(net.params, inputs), z)
    assert_same(net.state, inputs["state"])


# Errors ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda x: ng.from_nnx(NnxNet, FAMILY, x), r"instance of flax.*CNN\(rngs"),
        (lambda x: ng.from_linen(NnxNet, FAMILY, {}, x), "instance of flax"),
        (lambda x: ng.from_equinox(jnp.tanh, FAMILY, x), "instance of equinox"),
        (
            lambda x: ng.from_linen(nn.Dense(2), FAMILY, {"kernel": x}, x),
            r"collection 'params'; got \['kernel'\]",
        ),
        (
            lambda x: ng.from_equinox(
                eqx.nn.Sequential(
                    [eqx.nn.BatchNorm(4, axis, mode="ema") for axis in "ab"]
                ),
                FAMILY,
                x,
            ),
            r"different names, \['a', 'b'\]",
        ),
    ],
)
def test_errors_say_what_was_expected(make, words):
    with pytest.raises(ValueError, match=words):
        make(data()[0])


@pytest.mark.parametrize("leave_out", ["key", "state", "x"])
def test_inputs_without_an_entry_are_an_error_that_names_all(leave_out):
    net, inputs, *_ = case("linen")
    given = {k: v for k, v in inputs.items() if k != leave_out}
    with pytest.raises(ValueError, match="dictionary with the entries x, state, key"):
        net.model.outputs(net.params, given)
    with pytest.raises(ValueError, match="dictionary with the entries x, state, key"):
        net.model.outputs(net.params, inputs["x"])


def test_a_framework_that_is_not_installed_names_the_package():
    with pytest.raises(ValueError, match=r"pip install no-such-framework$"):
        network.framework("no_such_framework.nn", "no-such-framework")


def test_no_framework_is_imported_with_natgrad():
    modules = library()
    mine = [name for name in modules if name.startswith("natgrad.integrations")]
    assert len(mine) == 5
    targets = {i.target for name in mine for i in imports(modules[name], modules)}
    roots = {target.split(".")[0] for target in targets}
    assert not roots & {"flax", "equinox", "haiku", "keras"}

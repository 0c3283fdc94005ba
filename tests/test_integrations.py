"""Networks of frameworks: the models are the networks, in each of their modes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from modules import imports, library

import natgrad as ng
from natgrad.curvature import KFAC, Diagonal
from natgrad.integrations import network

N, C, RATE = 6, 3, 0.5
FAMILY = ng.families.Categorical()
KEY = jax.random.key(3)


@pytest.fixture(autouse=True)
def relaxed(single_precision):
    """As users have it: strictness is for the library."""
    with jax.numpy_rank_promotion("allow"):
        yield


class Case(NamedTuple):
    """A network, inputs of it, and the framework's own calls of it."""

    net: Any
    inputs: Any
    # (params, inputs) -> (z, state); in evaluation z alone
    train: Any
    evaluate: Any
    # (old state, new state) -> the new statistics and else the old
    statistics: Any = lambda old, new: new


class NnxNet(nnx.Module):
    def __init__(self, norm, rngs):
        self.a = nnx.Linear(4, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, momentum=0.0, rngs=rngs) if norm else None
        self.dropout = nnx.Dropout(RATE, rngs=rngs)
        self.b = nnx.Linear(5, C, rngs=rngs)

    def __call__(self, x):
        x = self.a(x) if self.norm is None else self.norm(self.a(x))
        return self.b(self.dropout(jnp.tanh(x)))


class LinenNet(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Dense(5)(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.0)(x)
        x = nn.Dropout(RATE, deterministic=not train)(jnp.tanh(x))
        return nn.Dense(C)(x)


class EquinoxNet(eqx.Module):
    a: eqx.nn.Linear
    norm: eqx.nn.BatchNorm | None
    dropout: eqx.nn.Dropout
    b: eqx.nn.Linear

    def __init__(self, norm, key):
        one, two = jax.random.split(key)
        self.a = eqx.nn.Linear(4, 5, key=one)
        # Of mode "ema" the running statistics are those that training normalises by.
        self.norm = eqx.nn.BatchNorm(5, "batch", mode="ema") if norm else None
        self.dropout = eqx.nn.Dropout(RATE)
        self.b = eqx.nn.Linear(5, C, key=two)

    def __call__(self, x, state, key=None):
        x = self.a(x)
        if self.norm is not None:
            x, state = self.norm(x, state)
        return self.b(self.dropout(jnp.tanh(x), key=key)), state


def data():
    return jax.random.normal(jax.random.key(0), (N, 4)), jnp.arange(N) % C


def nnx_case(norm):
    x, _ = data()
    module = NnxNet(norm, nnx.Rngs(0))
    net = ng.from_nnx(module, FAMILY, x[:1])

    def call(params, inputs, mode):
        own = nnx.merge(nnx.graphdef(module), params, inputs["state"], copy=True)
        getattr(own, mode)()
        return own(inputs["x"]), nnx.state(own, nnx.Not(nnx.Param))

    def statistics(old, new):
        return nnx.merge_state(
            nnx.filter_state(old, nnx.Not(nnx.BatchStat)),
            nnx.filter_state(new, nnx.BatchStat),
        )

    inputs = {"x": x, "state": net.state}
    train = functools.partial(call, mode="train")
    return Case(net, inputs, train, lambda *a: call(*a, "eval")[0], statistics)


def linen_case(norm):
    x, _ = data()
    module = LinenNet(norm)
    variables = module.init(jax.random.key(0), x)
    net = ng.from_linen(module, FAMILY, variables, x[:1])

    def train(params, inputs):
        return module.apply(
            {"params": params, **inputs.get("state", {})},
            inputs["x"],
            train=True,
            rngs={"dropout": inputs["key"]},
            mutable=["batch_stats"],
        )

    def evaluate(params, inputs):
        variables = {"params": params, **inputs.get("state", {})}
        return module.apply(variables, inputs["x"], train=False)

    state = {"state": net.state} if norm else {}
    return Case(net, {"x": x, "key": KEY, **state}, train, evaluate)


def equinox_case(norm):
    x, _ = data()
    module, state = eqx.nn.make_with_state(EquinoxNet)(norm, jax.random.key(0))
    net = ng.from_equinox(module, FAMILY, x[:1], state=state)

    def call(params, inputs, inference):
        own = eqx.nn.inference_mode(eqx.combine(params, module), inference)
        return jax.vmap(
            own, axis_name="batch", in_axes=(0, None, 0), out_axes=(0, None)
        )(inputs["x"], jax.tree.map(jnp.asarray, inputs["state"]), inputs.get("key"))

    inputs = {"x": x, "key": jax.random.split(KEY, N), "state": state}
    train = lambda *a: call(*a, False)
    return Case(net, inputs, train, lambda *a: call(*a, True)[0])


CASES = {"nnx": nnx_case, "linen": linen_case, "equinox": equinox_case}
NAMES = pytest.mark.parametrize("name", CASES)


@functools.cache
def case(name, norm=True):
    return CASES[name](norm)


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

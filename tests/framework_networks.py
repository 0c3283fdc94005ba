"""Networks of frameworks with dropout and batch statistics, and their own calls."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import natgrad as ng

N, C, RATE = 6, 3, 0.5
FAMILY = ng.families.Categorical()
KEY = jax.random.key(3)


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

"""What an adapter gives: the models of a network, its numbers, and its next state."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax

from natgrad.families.base import Family
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Params

# (params, inputs) -> (z [N, ...], the state after the call)
Forward = Callable[[Params, Inputs], tuple[Array, Any]]

# Arguments by which modules are told their mode, and their values in training.
_FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A network of a framework as natgrad takes it.

    The inputs of its models are a dictionary: "x", what the network is called with,
    [N, ...]; "key", random keys, where the network asks for them; "state", where it has
    a state. `model.in_axes` has exactly these entries; `eval_model` takes no "key".

    Attributes:
        model: the network in training: batch normalisation by the batch's statistics,
            dropout by the masks of the batch's key.
        eval_model: the network in evaluation: stored statistics, no dropout.
        curvature_model: the network in training, but for batch normalisation, which
            runs on the statistics of "state". Its examples do not interact, so K-FAC
            can read it. The same object as `model` where nothing is normalised so.
        params: θ, as the network was given.
        state: what else changes in training, as the network was given: running
            statistics, and with nnx counters of random numbers; None for nothing.
        next_state: next_state(params, inputs) -> the state after a call in training, as
            the framework computes it. Under jit beside the loss on the same inputs it
            costs no second pass: XLA computes what they share once.
    """

    model: Model
    eval_model: Model
    curvature_model: Model
    params: Params
    state: Any
    next_state: Callable[[Params, Inputs], Any]


class Forwards(NamedTuple):
    """One network in its three modes.

    Attributes:
        train: as `Network.model`.
        evaluate: as `Network.eval_model`.
        stored: as `Network.curvature_model`; None where it is the same as `train`.
    """

    train: Forward
    evaluate: Forward
    stored: Forward | None


def network(
    forwards: Forwards,
    params: Params,
    example_inputs: Mapping[str, Any],
    family: Family,
    *,
    weights: Callable[[Inputs], Array] | None,
    key_axis: int | None = None,
) -> Network:
    """The network of these functions.

    Args:
        forwards: the network in its three modes.
        params: θ.
        example_inputs: "x", and "key" and "state" where the network has them.
        family: the law of the labels given the outputs.
        weights: of `Model`.
        key_axis: 0 for a key an example, None for one key a batch.

    Returns:
        The network.
    """
    example_inputs = dict(example_inputs)
    state = example_inputs.get("state")
    axes: dict[str, int | None] = {"x": 0, "key": key_axis, "state": None}
    axes = {name: axes[name] for name in example_inputs}

    def model(forward, without=()):
        return Model(
            lambda params, inputs: forward(params, inputs)[0],
            family,
            {k: v for k, v in example_inputs.items() if k not in without},
            weights=weights,
            in_axes={k: v for k, v in axes.items() if k not in without},
        )

    train = model(forwards.train)
    return Network(
        model=train,
        eval_model=model(forwards.evaluate, without=("key",)),
        curvature_model=train if forwards.stored is None else model(forwards.stored),
        params=params,
        state=state,
        next_state=lambda params, inputs: forwards.train(params, inputs)[1],
    )


def framework(name: str, install: str) -> ModuleType:
    """A module of a framework, which natgrad does not depend on.

    Args:
        name: of the module, such as "flax.nnx".
        install: the package to install.

    Returns:
        The module.

    Raises:
        ValueError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"This needs {name}, which cannot be imported ({error}): pip install "
            f"{install}"
        ) from error


def check_module(module: Any, kind: type, what: str) -> None:
    """Raise unless a module is one of the framework's.

    Args:
        module: what was given.
        kind: the framework's class of modules.
        what: how such a module is made, for the message.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(module, kind):
        raise ValueError(
            f"module must be an instance of {kind.__module__.split('.')[0]}'s Module, "
            f"such as {what}; got {module!r}."
        )


def call_arguments(module: Any) -> Mapping[str, inspect.Parameter]:
    """The arguments of a module's call, by name.

    Args:
        module: of any framework.
    """
    return inspect.signature(type(module).__call__).parameters


def flagged(module: Any, *, train: bool) -> Callable[[Any, Any], Array]:
    """(module, x) -> z, with the module told its mode where its call asks for it.

    Args:
        module: whose call may have arguments named as in `_FLAGS`.
        train: training or evaluation.
    """
    asked = _FLAGS.keys() & call_arguments(module).keys()
    flags = {name: _FLAGS[name] is train for name in asked}
    return lambda module, x: module(x, **flags)


def has_leaves(value: Any) -> bool:
    """Whether a tree holds arrays.

    Args:
        value: a tree.
    """
    return bool(jax.tree.leaves(value))

"""equinox: the floating arrays of a module are θ; a call is of one example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from natgrad.families.base import Family
from natgrad.integrations.network import (
    Forwards,
    Network,
    call_arguments,
    check_module,
    framework,
    network,
)
from natgrad.model import batch
from natgrad.typing import Array, Inputs

# (module, x of one example, state, key) -> (z, state)
Call = Callable[[Any, Any, Any, Any], tuple[Array, Any]]


def from_equinox(
    module: Any,
    family: Family,
    x: Inputs,
    *,
    state: Any = None,
    call: Call | None = None,
    axis_name: str | None = None,
    weights: Callable[[Inputs], Array] | None = None,
) -> Network:
    """An equinox module as natgrad models.

        module, state = eqx.nn.make_with_state(CNN)(jax.random.key(0))
        net = from_equinox(module, natgrad.families.Categorical(), x[:1], state=state)
        keys = jax.random.split(key, len(x))
        inputs = {"x": x, "key": keys, "state": net.state}

    The module is mapped over the examples, each with a key of its own. It is called
    with `key=` and `state=` where its call has arguments of these names, and returns
    (z, state) in the latter case. `eqx.combine(params, module)` is the module with
    other parameters.

    Args:
        module: an instance of equinox.Module.
        family: the law of the labels given the outputs.
        x: inputs of a batch of any size, [N, ...]; the module sees one example.
        state: an equinox.nn.State where the module has one, as of `make_with_state`.
        call: call(module, x, state, key) -> (z, state) of one example, where the
            arguments of the module's call have other names; state and key may be None.
        axis_name: of the axis of examples; None for that of the module's BatchNorm.
        weights: as `Model.weights`.

    Returns:
        The network; its inputs are {"x": x, "key": keys, "state": state}, without "key"
        where the module works in training without one (key=None), and without "state"
        where none is given.

    Raises:
        ValueError: equinox is not installed, the module is none of equinox, or its
            BatchNorms have axes of different names.
    """
    eqx = framework("equinox", "equinox")
    check_module(module, eqx.Module, "eqx.nn.MLP(...)")
    axis_name = axis_name or _axis_name(eqx, module)
    params, static = eqx.partition(module, eqx.is_inexact_array)
    evaluation = eqx.nn.inference_mode(static)
    training = eqx.nn.inference_mode(static, value=False)
    stored = _on_stored_statistics(eqx, training)
    call = call or _named(module)

    def forward(static):
        def run(params, inputs):
            # A copy: an equinox State serves one update.
            before = jax.tree.map(lambda leaf: leaf, inputs.get("state"))
            mapped = jax.vmap(
                lambda x, key: call(eqx.combine(params, static), x, before, key),
                axis_name=axis_name,
                out_axes=(0, None),
            )
            return mapped(inputs["x"], inputs.get("key"))

        return run

    inputs = {"x": x} if state is None else {"x": x, "state": state}
    if _draws(forward(training), params, inputs):
        count = batch.input_count(x, 0) or 1
        inputs["key"] = jax.random.split(jax.random.key(0), count)
    forwards = Forwards(
        forward(training),
        forward(evaluation),
        None if stored is None else forward(stored),
    )
    return network(forwards, params, inputs, family, weights=weights, key_axis=0)


def _named(module: Any) -> Call:
    """A call with those of `state=` and `key=` that the module takes."""
    names = {"state", "key"} & call_arguments(module).keys()

    def call(module, x, state, key):
        given = {"state": state, "key": key}
        result = module(x, **{name: given[name] for name in names})
        return result if "state" in names else (result, state)

    return call


def _draws(run: Callable[..., Any], params: Any, inputs: Any) -> bool:
    """Whether training asks for a key: without one it fails."""
    try:
        jax.eval_shape(run, params, inputs)
    except Exception:
        return True
    return False


def _batch_norms(eqx: Any, module: Any) -> list[Any]:
    is_norm = lambda node: isinstance(node, eqx.nn.BatchNorm)
    return list(filter(is_norm, jax.tree.leaves(module, is_leaf=is_norm)))


def _axis_name(eqx: Any, module: Any) -> Any:
    names = {norm.axis_name for norm in _batch_norms(eqx, module)}
    if len(names) > 1:
        raise ValueError(
            "The BatchNorms of the module have axes of different names, "
            f"{sorted(map(str, names))}; examples have one axis: use the same name."
        )
    return names.pop() if names else None


def _on_stored_statistics(eqx: Any, module: Any) -> Any:
    """The module, its BatchNorms in evaluation; None where there are none."""
    if not _batch_norms(eqx, module):
        return None
    is_norm = lambda node: isinstance(node, eqx.nn.BatchNorm)
    return jax.tree.map(
        lambda node: eqx.nn.inference_mode(node) if is_norm(node) else node,
        module,
        is_leaf=is_norm,
    )

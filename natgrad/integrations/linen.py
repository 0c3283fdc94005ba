"""flax linen: params are one collection of variables, the others are state."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from natgrad.families.base import Family
from natgrad.integrations.network import (
    Forwards,
    Network,
    check_module,
    flagged,
    framework,
    network,
)
from natgrad.typing import Array, Inputs


def from_linen(
    module: Any,
    family: Family,
    variables: Mapping[str, Any],
    x: Inputs,
    *,
    train: Callable[[Any, Any], Array] | None = None,
    evaluate: Callable[[Any, Any], Array] | None = None,
    rngs: Sequence[str] = ("dropout",),
    weights: Callable[[Inputs], Array] | None = None,
) -> Network:
    """A flax linen module as natgrad models.

        variables = module.init(jax.random.key(0), x[:1])
        net = from_linen(module, natgrad.families.Categorical(), variables, x[:1])
        inputs = {"x": x, "key": key, "state": net.state}

    θ is `variables["params"]`, as a TrainState has it, and the state all other
    collections: `{"params": params, **state}` are variables again.

    Args:
        module: an instance of flax.linen.Module.
        family: the law of the labels given the outputs.
        variables: what `module.init` gave.
        x: what the module is called with, [N, ...], of any batch size.
        train: train(module, x) -> z [N, ...] in training, where the flags train=,
            training=, is_training=, deterministic= of its call are not enough, such as
            for several arguments: x may be a tree.
        evaluate: the same in evaluation.
        rngs: names of the random streams that the module draws from in training; the
            first has the key of the inputs itself.
        weights: as `Model.weights`.

    Returns:
        The network; its inputs are {"x": x, "key": key, "state": state}, without "key"
        where nothing is drawn, and without "state" where there is none.

    Raises:
        ValueError: flax is not installed, the module is none of linen, or the variables
            have no parameters.
    """
    nn = framework("flax.linen", "flax")
    check_module(module, nn.Module, "CNN()")
    if not isinstance(variables, Mapping) or "params" not in variables:
        has = list(variables) if isinstance(variables, Mapping) else type(variables)
        raise ValueError(
            "variables must be what module.init(key, x) gives, with a collection "
            f"'params'; got {has}. Parameters alone are {{'params': params}}."
        )
    train = train or flagged(module, train=True)
    evaluate = evaluate or flagged(module, train=False)
    sown = ("params", "intermediates")
    state = {name: value for name, value in variables.items() if name not in sown}

    def run(params, inputs, call=train):
        key = inputs.get("key")
        return module.apply(
            {"params": params, **inputs.get("state", {})},
            inputs["x"],
            rngs={} if key is None else _streams(key, rngs),
            mutable=list(state),
            method=call,
        )

    def run_stored(params, inputs):
        with nn.intercept_methods(_on_stored_statistics(nn.BatchNorm)):
            return run(params, inputs)

    def run_evaluation(params, inputs):
        return run(params, inputs, evaluate)

    params = variables["params"]
    inputs = {"x": x, "state": state} if state else {"x": x}
    if _draws(lambda: run(params, inputs)):
        inputs["key"] = jax.random.key(0)
    stored = run_stored if "batch_stats" in state else None
    forwards = Forwards(run, run_evaluation, stored)
    return network(forwards, params, inputs, family, weights=weights)


def _streams(key, names):
    """The key itself for the first name, which users compare with, and others."""
    keys = [key, *(jax.random.fold_in(key, n) for n in range(1, len(names)))]
    return dict(zip(names, keys, strict=True))


def _draws(call: Callable[[], Any]) -> bool:
    """Whether a call without random keys asks for one."""
    try:
        jax.eval_shape(call)
    except framework("flax.errors", "flax").InvalidRngError:
        return True
    return False


def _on_stored_statistics(batch_norm: type) -> Callable[..., Any]:
    """An interceptor of calls: BatchNorm normalises by what is stored."""

    def intercept(call, args, kwargs, context):
        if isinstance(context.module, batch_norm) and context.method_name == "__call__":
            # Whether the module or its call was told otherwise; the module is one of
            # this call alone, and frozen.
            object.__setattr__(context.module, "use_running_average", True)
            args = args[:1]
            kwargs = {k: v for k, v in kwargs.items() if k != "use_running_average"}
        return call(*args, **kwargs)

    return intercept

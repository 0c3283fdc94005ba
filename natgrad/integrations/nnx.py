"""flax nnx: parameters are one part of a module's variables, all else is state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from natgrad.families.base import Family
from natgrad.integrations.network import (
    Forwards,
    Network,
    check_module,
    flagged,
    framework,
    has_leaves,
    network,
)
from natgrad.typing import Array, Inputs


def from_nnx(
    module: Any,
    family: Family,
    x: Inputs,
    *,
    train: Callable[[Any, Any], Array] | None = None,
    evaluate: Callable[[Any, Any], Array] | None = None,
    wrt: Any = None,
    weights: Callable[[Inputs], Array] | None = None,
) -> Network:
    """A flax nnx module as natgrad models.

        net = from_nnx(CNN(nnx.Rngs(0)), natgrad.families.Categorical(), x[:1])
        inputs = {"x": x, "state": net.state}

    The module itself is left as it is. The state has its running statistics and the
    counters of its random numbers: inputs with the same state have the same dropout
    masks, and `net.next_state(params, inputs)` moves both on. `nnx.update(module,
    params, state)` writes them into the module; the other way round,
    `nnx.state(nnx.clone(module), nnx.Not(nnx.Param))` is the state that it has now, in
    a copy that later calls of the module do not change.

    Args:
        module: an instance of nnx.Module.
        family: the law of the labels given the outputs.
        x: what the module is called with, [N, ...], of any batch size.
        train: train(module, x) -> z [N, ...] in training, where `module.train()` and
            the flags train=, training=, is_training=, deterministic= of its call are
            not enough, such as for several arguments: x may be a tree.
        evaluate: the same in evaluation.
        wrt: the filter of what is trained; None for nnx.Param.
        weights: as `Model.weights`.

    Returns:
        The network; its inputs are {"x": x, "state": state}, or {"x": x} without state.

    Raises:
        ValueError: flax is not installed, or the module is none of nnx.
    """
    nnx = framework("flax.nnx", "flax")
    check_module(module, nnx.Module, "CNN(rngs=nnx.Rngs(0))")
    wrt = nnx.Param if wrt is None else wrt
    train = train or flagged(module, train=True)
    evaluate = evaluate or flagged(module, train=False)
    training, evaluation, stored, kept = (nnx.clone(module) for _ in range(4))
    _, params, state = nnx.split(kept, wrt, ...)
    training.train()
    evaluation.eval()
    stored.train()
    stored.set_attributes(use_running_average=True, raise_if_not_found=False)

    def forward(graph, call):
        def run(params, inputs):
            # A copy, since calls write into the variables.
            net = nnx.merge(graph, params, inputs.get("state", state), copy=True)
            z = call(net, inputs["x"])
            return z, nnx.split(net, wrt, ...)[2]

        return run

    graphs = [nnx.graphdef(net) for net in (training, evaluation, stored)]
    forwards = Forwards(
        forward(graphs[0], train),
        forward(graphs[1], evaluate),
        None if graphs[2] == graphs[0] else forward(graphs[2], train),
    )
    inputs = {"x": x, "state": state} if has_leaves(state) else {"x": x}
    return network(forwards, params, inputs, family, weights=weights)

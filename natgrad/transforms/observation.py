"""Statistics that are observed apart from the update, in any optax state.

A state of `scale_by_curvature` says whose it is: its `owner` is a dictionary with one
key, which names the curvature and the parameters, and nothing in it. Keys are part of
a tree's structure, so `observe` can read them under `jit`, and every kind of checkpoint
keeps them.
"""

from __future__ import annotations

import contextvars
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.eager import note_read, operation_by_operation
from natgrad.layers.compiled import compiled
from natgrad.model import Model
from natgrad.model.batch import Batch
from natgrad.transforms.averaging import ByBatch
from natgrad.transforms.health import first_failure
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.statistics_update import add_to_average
from natgrad.transforms.validation import restrict_to_subtree, same_shapes
from natgrad.typing import Array, ArrayLike, Inputs, Params

# Longer descriptions are cut there, and a digest follows.
_WRITTEN = 80


class _Use(NamedTuple):
    """A curvature, the parameters that its transformation sees, and what decides β."""

    curvature: Curvature
    params: Params
    decay: ArrayLike | ByBatch | None = None


_uses: contextvars.ContextVar[list[_Use] | None] = contextvars.ContextVar(
    "natgrad_uses", default=None
)


def owner(
    curvature: Curvature, params: Params, decay: ArrayLike | ByBatch
) -> dict[str, tuple]:
    """Whose a new state is; `observe` learns which transformations are in a chain."""
    found = _uses.get()
    if found is not None:
        found.append(_Use(curvature, params, decay))
    return {_name(curvature, params): ()}


def observe(
    transformation: optax.GradientTransformation | Curvature,
    state: Any,
    params: Params,
    *,
    inputs: Inputs,
    targets: Array | None = None,
    model_params: Params | None = None,
) -> Any:
    """Refresh the statistics inside any optax state.

    For code that can only call `tx.update(grads, state, params)`, such as flax's
    `TrainState`: observe the batch first, and the plain update uses what was observed.

        state = natgrad.observe(tx, state, params, inputs=x)
        updates, state = tx.update(grads, state, params)

    Curvatures that keep no matrix (`Gram`, `MatrixFree`, and `natural_gradient` with
    more than 512 parameters) need the batch in `update` and cannot be observed.

    Args:
        transformation: `tx` itself, whatever its transformations are wrapped in; or
            the curvature of one of them, for the state of that one.
        state: a state of `tx`, or any tree that contains it.
        params: θ, as `tx.init` takes them; for a curvature, as its transformation sees
            them.
        inputs: a batch of inputs.
        targets: its labels, for empirical labels.
        model_params: as for `scale_by_curvature`. Not needed with `tx` where `params`
            is the whole tree.

    Returns:
        `state` with one more estimate in the statistics of these transformations; all
        else is as it was.

    Raises:
        ValueError: if no part of the state belongs to such a curvature on such
            parameters, if it cannot be told which part does, or if the curvature
            keeps no matrix.
    """
    nodes = list(filter(_is_state, jax.tree.leaves(state, is_leaf=_is_state)))
    batch = inputs, targets
    refreshed = iter(_observed(transformation, nodes, params, batch, model_params))

    def observed(node):
        return (next(refreshed) or node) if _is_state(node) else node

    return jax.tree.map(observed, state, is_leaf=_is_state)


@compiled
def _observed(
    transformation: optax.GradientTransformation | Curvature,
    nodes: list[ScaleByCurvatureState],
    params: Params,
    batch: tuple[Inputs, Array | None],
    model_params: Params | None,
) -> list[ScaleByCurvatureState | None]:
    """The states after the batch; None for those of others."""
    given, params = params, tree.split_complex(params)
    if isinstance(transformation, Curvature):
        uses = [_Use(transformation, params)]
    else:
        uses = _uses_in(transformation, given)
    by_name: dict[str, list[_Use]] = {}
    for use in uses:
        by_name.setdefault(_name(use.curvature, use.params), []).append(use)
    if not by_name:
        raise ValueError(
            "No transformation in this one holds a curvature, so there is nothing to "
            "observe: call update without it."
        )
    specialized: dict[str | None, _Use] = {}
    for name, same in by_name.items():
        seen, full = same[0].params, model_params
        if full is None and tree.has_placeholders(seen) and seen is not params:
            full = params
        curvature = restrict_to_subtree(same[0].curvature, seen, full)
        _check(name, same, curvature, seen, nodes)
        specialized[name] = _Use(curvature, seen, same[0].decay)
        whole = tree.join_complex(seen if full is None else full)
        note_read(curvature.model.apply, whole, batch[0])
    found = [specialized.get(_owner_of(node)) for node in nodes]
    return [
        None if use is None else _refreshed(node, use, *batch)
        for node, use in zip(nodes, found, strict=True)
    ]


def _is_state(node: Any) -> bool:
    return isinstance(node, ScaleByCurvatureState)


def _uses_in(transformation: Any, params: Params) -> list[_Use]:
    """The curvatures in a transformation, as its `init` comes by them."""
    if not hasattr(transformation, "init") or not hasattr(transformation, "update"):
        raise ValueError(
            "observe takes a transformation, or its curvature, then its state and the "
            f"params: observe(tx, state, params, inputs=x); got {transformation!r}."
        )
    uses: list[_Use] = []
    token = _uses.set(uses)
    try:
        with operation_by_operation():
            transformation.init(params)
        return uses
    finally:
        _uses.reset(token)


def _check(
    name: str, same: list[_Use], curvature: Curvature, params: Params, nodes: list
) -> None:
    """Raise unless it is clear which states are those of `name`, and they keep F."""
    kind = type(same[0].curvature).__name__
    if curvature.requires_batch:
        raise ValueError(
            f"{kind} keeps no matrix of these params, so there is nothing to observe: "
            "pass inputs= to update, or use a curvature with statistics, such as Dense "
            "or KFAC."
        )
    expected = jax.eval_shape(curvature.init, params)
    mine = [node for node in nodes if _owner_of(node) == name]
    if not mine:
        owners = ", ".join(sorted({str(_owner_of(node)) for node in nodes}))
        raise ValueError(
            f"No part of the optimizer state belongs to {name}. Pass transformation or "
            "curvature, params and state of one and the same transformation. "
            f"This state has {owners or 'nothing that can be observed'}."
        )
    if not all(same_shapes(node.statistics, expected) for node in mine):
        raise ValueError(
            f"The statistics of {name} have other shapes in this state than at these "
            "params. Is it a batch of states? Then observe each, under jax.vmap."
        )
    if len({id(use.curvature) for use in same}) > 1 or len(mine) > len(same):
        raise ValueError(
            f"The state has {len(mine)} parts of the kind {name}, and it cannot be "
            "told which of them to refresh: pass the one that is meant, such as "
            "state[0] of a chain, or the transformation whose whole state this is, "
            "with one curvature object for all of them."
        )


def _refreshed(
    node: ScaleByCurvatureState, use: _Use, inputs: Inputs, targets: Array | None
) -> ScaleByCurvatureState:
    """The state with the batch's statistics in its average."""
    key = tree.next_key(node.key)
    following = use.curvature.with_previous(node.statistics)
    statistics = following.estimate(use.params, inputs, targets, key)
    usable = tree.all_finite(statistics)
    reason = first_failure(True, True, usable)
    health = node.health._replace(skipped=~usable, reason=reason)
    if isinstance(use.decay, ByBatch):
        curvature = use.curvature.specialize(use.params)
        given = Batch(use.params, inputs, targets, None)
        beta = use.decay.of_batch(curvature, given)
        node = node._replace(decay=jnp.asarray(beta, node.decay.dtype))
    node = add_to_average(use.curvature, node, statistics, usable)
    return node._replace(key=key, health=health)


def _owner_of(node: ScaleByCurvatureState) -> str | None:
    return next(iter(node.owner)) if isinstance(node.owner, dict) else None


def _name(curvature: Curvature, params: Params) -> str:
    """Such as 'Dense(model=Categorical, labels=Exact()) of b[3], w[2, 3]'.

    Two that are not the same specification have different names, but for what has no
    name of its own: functions and arrays.
    """
    leaves = zip(tree.paths(params), jax.tree.leaves(params), strict=True)
    arrays = ", ".join(f"{path}{list(jnp.shape(leaf))}" for path, leaf in leaves)
    what = _described(curvature.specialize(params))
    return f"{_shortened(what)} of {_shortened(arrays)}"


def _described(value: Any) -> str:
    """The same in every process; without what is None."""
    if isinstance(value, Model):
        return type(value.family).__name__
    if isinstance(value, str | int | float | None):
        return repr(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        parts = [f"{k}={_described(v)}" for k, v in fields.items() if v is not None]
        return f"{type(value).__name__}({', '.join(parts)})"
    if isinstance(value, Mapping):
        parts = sorted(f"{key}: {_described(v)}" for key, v in value.items())
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, jax.Array):
        return "Array"  # traced or not
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_described, value))})"
    return getattr(value, "__qualname__", type(value).__name__)


def _shortened(text: str) -> str:
    if len(text) <= _WRITTEN:
        return text
    digest = hashlib.blake2s(text.encode(), digest_size=4).hexdigest()
    return f"{text[:_WRITTEN]}… {digest}"
